"""Networks by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from stpredict.errors import ModelFileError, UsageError
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.m2ort import M2ORT, VARIANTS, M2ORTConfig

Network = M2ORT | Dictionary | Encoded
#: The architectures whose head is fitted at once rather than trained epoch by epoch.
DICTIONARY, ENCODER = "dictionary", "encoder"
FITTED = (DICTIONARY, ENCODER)
CONFIGS = {"m2ort": M2ORTConfig, DICTIONARY: DictionaryConfig, ENCODER: EncoderConfig}
#: Those that are trained by gradient descent, with their sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    f"m2ort-{variant}{suffix}": {**sizes, "mixing": mixing}
    for variant, sizes in VARIANTS.items()
    for suffix, mixing in (("", "per_level"), ("-cross", "cross_level"))
}


def check_architecture(architecture: str) -> None:
    """Raises UsageError for a name that is no architecture's."""
    if architecture not in (*ARCHITECTURES, *FITTED):
        raise UsageError(f"--arch {architecture}: choose one of {', '.join((*ARCHITECTURES, DICTIONARY))}.")


def architecture_config(architecture: str, **parameters: Any) -> M2ORTConfig:
    """The configuration of a named M2ORT. Raises UsageError for a name that is no architecture's."""
    check_architecture(architecture)
    return M2ORTConfig(**{**ARCHITECTURES[architecture], **parameters})


def build_network(parameters: dict[str, Any]) -> Network:
    """The network that a model's card describes, an encoder yet to be attached.

    Raises ModelFileError for parameters that are none.
    """
    sizes = {key: value for key, value in parameters.items() if key != "network"}
    try:
        config = CONFIGS[parameters.get("network", "m2ort")](**sizes)  # cards of the first version do not say
        match config:
            case DictionaryConfig():
                return Dictionary(config)
            case EncoderConfig():
                return Encoded(config)
            case _:
                return M2ORT(config)
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelFileError(f"the model's card does not describe a network ({error}).") from error


def network_parameters(config: M2ORTConfig | DictionaryConfig | EncoderConfig) -> dict[str, Any]:
    """What a card stores of a network."""
    name = next(name for name, kind in CONFIGS.items() if isinstance(config, kind))
    return {"network": name, **dataclasses.asdict(config)}


def own_state(network: Network) -> dict[str, Any]:
    """A network's tensors, without those of an encoder that is attached to it."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("encoder.")}
