"""The state of a stage of training, stored now and then, so that a killed run ends as an undisturbed one.

The network, the optimiser, the schedule, the place in the stage and the place in the stream of random numbers determine
what a step computes. All of them are stored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stpredict.storage.files import atomic_path
from stpredict.training.processes import is_main_process

#: The most work that can be lost, apart from what follows the last step of an epoch.
SAVE_EVERY_S = 300.0
#: After the last step of an epoch the state is stored if this time has passed, as scoring may take long.
SAVE_BEFORE_SCORING_S = 30.0


class HasState(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@dataclass(frozen=True)
class Place:
    """How far a stage is: finished epochs, steps of the next, the sum of their items' losses, and their seconds."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The places in the streams of random numbers of the CPU and, if it is a GPU, of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to these places."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@dataclass
class State:
    """A file for the state of some `parts`, as "network" and "optimizer", that are trained on a device."""

    path: Path
    parts: Mapping[str, HasState]
    device: torch.device
    _kept_at: float = field(default_factory=time.monotonic)
    _random: dict[str, Tensor] = field(default_factory=dict)

    def is_due(self, after_s: float | None = None) -> bool:
        """Whether it was last stored so long ago that it should be stored again."""
        return time.monotonic() - self._kept_at >= (SAVE_EVERY_S if after_s is None else after_s)

    def keep(self, place: Place) -> None:
        """Write the state, whole or not at all."""
        self._kept_at = time.monotonic()
        if not is_main_process():
            return
        kept = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_path(self.path) as temporary:
            torch.save(kept | vars(place) | {"random": random_state(self.device)}, temporary)

    def restore(self) -> Place:
        """Restore the parts, and return the place of their state: the beginning if nothing was stored.

        A file of an older version has the state at the end of an epoch.
        """
        if not self.path.exists():
            return Place()
        kept = torch.load(self.path, map_location=self.device, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        self._random = {name: state.cpu() for name, state in kept.get("random", {}).items()}
        return Place(**{name: kept[name] for name in vars(Place()) if name in kept})

    def restore_random(self, place: Place) -> None:
        """Restore the streams of random numbers as they were at that place, if it is within an epoch."""
        if place.step:
            set_random_state(self._random, self.device)
