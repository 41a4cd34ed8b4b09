"""The networks, a file per published system that reads top to bottom, and here each by its name.

They may import `slides`, for what a view is, and what lies below; they know no patients, models or engines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from stpredict.errors import ModelFileError, UsageError
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.m2ort import M2ORT, VARIANTS, M2ORTConfig
from stpredict.networks.m2ost import M2OST, VIEWS, M2OSTConfig
from stpredict.networks.patch_level import SYSTEMS, PatchConfig, PatchNetwork
from stpredict.networks.timm_vit import ViTReading
from stpredict.networks.triplex import SETTINGS, Triplex, TriplexConfig
from stpredict.slides.views import Views, views_of

Network = M2ORT | M2OST | Triplex | PatchNetwork | Dictionary | Encoded
Config = M2ORTConfig | M2OSTConfig | TriplexConfig | PatchConfig | DictionaryConfig | EncoderConfig
#: The architectures whose head is fitted at once rather than trained epoch by epoch.
DICTIONARY, ENCODER = "dictionary", "encoder"
FITTED = (DICTIONARY, ENCODER)
NETWORKS: dict[str, tuple[Any, Any]] = {
    "m2ort": (M2ORTConfig, M2ORT),
    "m2ost": (M2OSTConfig, M2OST),
    "triplex": (TriplexConfig, Triplex),
    "patch": (PatchConfig, PatchNetwork),
    DICTIONARY: (DictionaryConfig, Dictionary),
    ENCODER: (EncoderConfig, Encoded),
}
#: What cards mean that are older than a field of their network's configuration.
UNSAID: dict[str, dict[str, Any]] = {"triplex": {"neighbour_norm": False}}
#: Those that are trained by gradient descent, with their sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{
        f"m2ort-{variant}{suffix}": {**sizes, "mixing": mixing}
        for variant, sizes in VARIANTS.items()
        for suffix, mixing in (("", "per_level"), ("-cross", "cross_level"))
    },
    "m2ost": {"network": "m2ost", "views": VIEWS},
    **{name: {"network": "triplex", **sizes} for name, sizes in SETTINGS.items()},
    **{name: {"network": "patch", **sizes} for name, sizes in SYSTEMS.items()},
}
#: Those whose trunk may begin with weights of the user's.
TRUNK_FIRST = (*SETTINGS, *SYSTEMS)


def check_architecture(architecture: str) -> None:
    """Raises UsageError for a name that is no architecture's."""
    if architecture not in (*ARCHITECTURES, *FITTED):
        raise UsageError(f"--arch {architecture}: choose one of {', '.join((*ARCHITECTURES, DICTIONARY))}.")


def architecture_views(architecture: str) -> Views:
    """The views of each spot that networks of an architecture look at."""
    return views_of(ARCHITECTURES.get(architecture, {}))


def reads_slides(architecture: str) -> bool:
    """Are its networks told of all spots of a slide?"""
    return ARCHITECTURES.get(architecture, {}).get("network") == "triplex"


def has_trunk(architecture: str) -> bool:
    """Do its networks begin with a trunk, whose weights the user may have?"""
    return ARCHITECTURES.get(architecture, {}).get("network") in ("triplex", "patch")


def architecture_config(architecture: str, **parameters: Any) -> Config:
    """The configuration of an architecture that is trained. Raises UsageError for a name that is no architecture's."""
    check_architecture(architecture)
    return _config(ARCHITECTURES[architecture] | parameters)


def make_network(config: Config) -> Network:
    """A network with random weights, an encoder yet to be attached."""
    network: Network = next(network for kind, network in NETWORKS.values() if isinstance(config, kind))(config)
    return network


def build_network(parameters: dict[str, Any]) -> Network:
    """The network that a model's card describes, an encoder yet to be attached.

    Raises ModelFileError for parameters that are none.
    """
    try:
        return make_network(_config(UNSAID.get(parameters.get("network", "m2ort"), {}) | parameters))
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelFileError(f"the model's card does not describe a network ({error}).") from error


def network_parameters(config: Config) -> dict[str, Any]:
    """What a card stores of a network."""
    name = next(name for name, (kind, _) in NETWORKS.items() if isinstance(config, kind))
    return {"network": name, **dataclasses.asdict(config)}


def own_state(network: Network) -> dict[str, Any]:
    """A network's tensors, without those of an encoder that is attached to it."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("encoder.")}


def _config(parameters: dict[str, Any]) -> Config:
    sizes = {key: value for key, value in parameters.items() if key != "network"}
    if sizes.get("vit"):
        sizes["vit"] = ViTReading(**sizes["vit"])
    config: Config = NETWORKS[parameters.get("network", "m2ort")][0](**sizes)  # cards of the first version do not say
    return config
