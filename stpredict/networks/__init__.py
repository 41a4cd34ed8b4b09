"""The networks, a file per published system that reads top to bottom, and here each by its name.

They may import `slides`, for what a view is, and what lies below; they know no patients, models or engines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from stpredict.errors import ModelFileError, UsageError
from stpredict.networks.bleep import Bleep, BleepConfig
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.networks.egn import Egn, EgnConfig
from stpredict.networks.encoder import Encoded, EncoderConfig, OnEncoder, Published, PublishedConfig
from stpredict.networks.hipt import Hipt, HiptConfig
from stpredict.networks.hist2st import HIST2STS, Hist2ST, Hist2STConfig
from stpredict.networks.histogene import HISTOGENES, HisToGene, HisToGeneConfig
from stpredict.networks.istar import IStar, IStarConfig
from stpredict.networks.m2ort import M2ORT, VARIANTS, M2ORTConfig, keep_width
from stpredict.networks.m2ost import M2OST, VIEWS, M2OSTConfig
from stpredict.networks.options import base_name, read_options
from stpredict.networks.patch_level import SYSTEMS, PatchConfig, PatchNetwork
from stpredict.networks.published_head import describe_head, read_head_config
from stpredict.networks.timm_vit import ViTReading
from stpredict.networks.triplex import SETTINGS, Triplex, TriplexConfig
from stpredict.slides.views import Views, views_of

#: All spots of a section are one sample of these, and trained on together.
SectionNetwork = HisToGene | Hist2ST
#: These read a slide in tiles, through frozen networks that the user has.
TileNetwork = Hipt | IStar
#: These look at more of a slide than the spots' patches, and run in two passes.
SlideNetwork = Triplex | SectionNetwork | TileNetwork
#: These predict from a bank of measured spots.
BankNetwork = Bleep | Egn
Network = M2ORT | M2OST | SlideNetwork | PatchNetwork | BankNetwork | Dictionary | OnEncoder
Config = (
    M2ORTConfig | M2OSTConfig | TriplexConfig | HisToGeneConfig | Hist2STConfig | HiptConfig | IStarConfig | PatchConfig
    | BleepConfig | EgnConfig | DictionaryConfig | EncoderConfig | PublishedConfig
)  # fmt: skip
#: The architectures whose head is fitted at once rather than trained epoch by epoch.
DICTIONARY, ENCODER, PUBLISHED, HIPT = "dictionary", "encoder", "published", "hipt"
FITTED = (DICTIONARY, ENCODER, HIPT)
NETWORKS: dict[str, tuple[Any, Any]] = {
    "m2ort": (M2ORTConfig, M2ORT),
    "m2ost": (M2OSTConfig, M2OST),
    "triplex": (TriplexConfig, Triplex),
    "histogene": (HisToGeneConfig, HisToGene),
    "hist2st": (Hist2STConfig, Hist2ST),
    HIPT: (HiptConfig, Hipt),
    "istar": (IStarConfig, IStar),
    "patch": (PatchConfig, PatchNetwork),
    "bleep": (BleepConfig, Bleep),
    "egn": (EgnConfig, Egn),
    DICTIONARY: (DictionaryConfig, Dictionary),
    ENCODER: (EncoderConfig, Encoded),
    PUBLISHED: (PublishedConfig, Published),
}
#: What cards mean that are older than a field of their network's configuration.
UNSAID: dict[str, dict[str, Any]] = {"triplex": {"neighbour_norm": False}}
#: The architectures whose model files hold measured spots.
BANKS = ("bleep", "egn")
#: Those that are trained by gradient descent, with their sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{
        f"m2ort-{variant}{suffix}": {**sizes, "mixing": mixing}
        for variant, sizes in VARIANTS.items()
        for suffix, mixing in (("", "per_level"), ("-cross", "cross_level"))
    },
    "m2ost": {"network": "m2ost", "views": VIEWS},
    **{name: {"network": "triplex", **sizes} for name, sizes in SETTINGS.items()},
    **{name: {"network": "histogene", **sizes} for name, sizes in HISTOGENES.items()},
    **{name: {"network": "hist2st", **sizes} for name, sizes in HIST2STS.items()},
    HIPT: {"network": HIPT},
    "istar": {"network": "istar"},
    **{name: {"network": "patch", **sizes} for name, sizes in SYSTEMS.items()},
    **{name: {"network": name} for name in BANKS},
}
#: What is trained where nothing else is asked for: M2ORT-Small's widths, two of its six encoders, whose head reads the
#: mean of the tokens, and whose tokens see how densely they are stained.
FLAGSHIP = "m2ort-small:depth=2:pool=mean:pixels=density"
#: Those whose trunk may begin with weights of the user's.
TRUNK_FIRST = (*SETTINGS, *SYSTEMS, *BANKS)


def check_architecture(architecture: str) -> None:
    """Raises UsageError for a name that is no architecture's, and for options that its network cannot have."""
    sizes = architecture_sizes(architecture)
    if sizes:
        architecture_config(architecture, n_genes=1)


def architecture_sizes(architecture: str) -> dict[str, Any]:
    """What is said of an architecture's network by its name and the options behind it; nothing of one that is fitted.

    Raises UsageError for a name that is no architecture's, and for what is no option of it.
    """
    name = base_name(architecture)
    if name not in (*ARCHITECTURES, *FITTED):
        raise UsageError(f"--arch {architecture}: choose one of {', '.join((*ARCHITECTURES, DICTIONARY))}.")
    sizes = ARCHITECTURES.get(name, {})
    options = read_options(architecture, NETWORKS[sizes.get("network", name if name in FITTED else "m2ort")][0])
    if "levels" in options:
        return keep_width(sizes, options)
    return {**sizes, **options}


def architecture_views(architecture: str) -> Views:
    """The views of each spot that networks of an architecture look at."""
    return views_of(architecture_sizes(architecture))


def reads_slides(architecture: str) -> bool:
    """Do its networks look at all spots of a slide?"""
    return slide_is_read(architecture_sizes(architecture) if base_name(architecture) in ARCHITECTURES else {})


def slide_is_read(parameters: dict[str, Any]) -> bool:
    """The same of the network that a card describes: of a TRIPLEX, unless it reads the target alone."""
    if parameters.get("network") == "triplex":
        return list(parameters.get("reads", ())) != ["target"]
    return parameters.get("network") in ("histogene", "hist2st", HIPT, "istar")


def reads_sections(architecture: str) -> bool:
    """Are all spots of a section one sample of its networks, which measured spots alone teach?"""
    return ARCHITECTURES.get(base_name(architecture), {}).get("network") in ("histogene", "hist2st")


def reads_tiles(architecture: str) -> bool:
    """Do its networks read slides in tiles, through frozen networks whose weights the user has?"""
    return ARCHITECTURES.get(base_name(architecture), {}).get("network") in (HIPT, "istar")


def has_tokens(architecture: str) -> bool:
    """Have its networks tokens that are squares of a patch, so that they can be taught densely?"""
    name = base_name(architecture)
    return name in ARCHITECTURES and ARCHITECTURES[name].get("network", "m2ort") in ("m2ort", "m2ost")


def has_trunk_tokens(architecture: str) -> bool:
    """Are the places of its trunk's last map read as tokens, so that the trunk can be taught densely?"""
    return ARCHITECTURES.get(base_name(architecture), {}).get("network") == "triplex"


def has_trunk(architecture: str) -> bool:
    """Do its networks begin with a trunk, whose weights the user may have?"""
    return ARCHITECTURES.get(base_name(architecture), {}).get("network") in ("triplex", "patch", *BANKS)


def has_bank(architecture: str) -> bool:
    """Do its networks predict from measured spots, which their model files hold?"""
    return ARCHITECTURES.get(base_name(architecture), {}).get("network") in BANKS


def architecture_config(architecture: str, **parameters: Any) -> Config:
    """The configuration of an architecture that is trained.

    Raises UsageError for a name that is no architecture's, and for options that do not go together.
    """
    try:
        return _config(architecture_sizes(architecture) | parameters)
    except ValueError as error:
        raise UsageError(f"--arch {architecture}: {error}.") from error


def refuses_patches(architecture: str, patch_px: int) -> str | None:
    """Why networks of an architecture do not take patches of this size; None if they do.

    Of frozen encoders nothing is known here.
    """
    import torch

    if patch_px < 1:
        return "that is no pixel"
    if architecture in FITTED:
        window_px = DictionaryConfig.window_px if architecture == DICTIONARY else 1
        return f"its windows are of {window_px} px" if patch_px < window_px else None
    try:
        with torch.device("meta"):
            make_network(_config(architecture_sizes(architecture) | {"n_genes": 1, "patch_px": patch_px}))
    except ValueError as error:
        return str(error)
    return None


def make_network(config: Config) -> Network:
    """A network with random weights, an encoder yet to be attached."""
    network: Network = next(network for kind, network in NETWORKS.values() if type(config) is kind)(config)
    return network


def build_network(parameters: dict[str, Any]) -> Network:
    """The network that a model's card describes, an encoder yet to be attached.

    Raises ModelFileError for unknown parameters.
    """
    try:
        return make_network(_config(UNSAID.get(parameters.get("network", "m2ort"), {}) | parameters))
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelFileError(f"the model's card does not describe a network ({error}).") from error


def network_parameters(config: Config) -> dict[str, Any]:
    """What a card stores of a network."""
    name = next(name for name, (kind, _) in NETWORKS.items() if type(config) is kind)
    parameters = {"network": name, **dataclasses.asdict(config)}
    if isinstance(config, EncoderConfig) and config.stain is None:
        del parameters["stain"]  # as cards have it that know of none
    if isinstance(config, PublishedConfig) and config.head:
        parameters["head"] = describe_head(config.head)
    return parameters


def describe_bank(network: BankNetwork) -> dict[str, Any]:
    """What a model file holds of the spots in its bank, for the card."""
    of_each = "the embedding" if isinstance(network, Bleep) else "frozen features"
    return {"spots": network.config.bank, "genes": network.config.n_genes, "of_each": of_each}


def says_z(network: Network) -> bool:
    """Does it end in a linear head, whose output an objective makes expression of? A BLEEP says expression itself."""
    return not isinstance(network, Bleep)


def own_state(network: Network) -> dict[str, Any]:
    """A network's tensors, without those of an encoder or a head's program that are attached to it."""
    attached = ("encoder.", "head.program.")
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(attached)}


def _config(parameters: dict[str, Any]) -> Config:
    sizes = {key: value for key, value in parameters.items() if key != "network"}
    if sizes.get("vit"):
        sizes["vit"] = ViTReading(**sizes["vit"])
    if parameters.get("network") == PUBLISHED:
        sizes["head"] = read_head_config(sizes["head"])
    config: Config = NETWORKS[parameters.get("network", "m2ort")][0](**sizes)  # cards of the first version do not say
    return config
