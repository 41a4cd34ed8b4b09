"""Networks by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from stpredict.errors import ModelFileError, UsageError
from stpredict.networks.m2ort import M2ORT, VARIANTS, M2ORTConfig

ARCHITECTURES: dict[str, dict[str, Any]] = {
    f"m2ort-{variant}{suffix}": {**sizes, "mixing": mixing}
    for variant, sizes in VARIANTS.items()
    for suffix, mixing in (("", "per_level"), ("-cross", "cross_level"))
}


def architecture_config(architecture: str, **parameters: Any) -> M2ORTConfig:
    """The configuration of a named architecture. Raises UsageError for a name that is not one."""
    if architecture not in ARCHITECTURES:
        raise UsageError(f"--arch {architecture}: choose one of {', '.join(ARCHITECTURES)}.")
    return M2ORTConfig(**{**ARCHITECTURES[architecture], **parameters})


def build_network(parameters: dict[str, Any]) -> M2ORT:
    """The network that a model's card describes. Raises ModelFileError for parameters that are none."""
    try:
        return M2ORT(M2ORTConfig(**parameters))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelFileError(f"the model's card does not describe an M2ORT network ({error}).") from error


def network_parameters(config: M2ORTConfig) -> dict[str, Any]:
    """What a card stores of a network."""
    return dataclasses.asdict(config)
