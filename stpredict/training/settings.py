"""How to train, as the command line says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stpredict.evaluation import MIN_DEPTH
from stpredict.networks import FITTED
from stpredict.networks.timm_vit import ViTReading


@dataclass(frozen=True)
class EncoderSettings:
    """A frozen encoder's file, known by its content, and how it was trained. `mean` and `std` are of RGB in 0..1."""

    file: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    vit: ViTReading | None = None  # of a timm checkpoint


@dataclass(frozen=True)
class WeightsSettings:
    """A file of weights that a network's trunk begins with, known by its content."""

    file: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Settings:
    """How to train. Learning rates are the peaks of one-cycle schedules."""

    architecture: str = "m2ort-small"
    objective: str = "residuals"
    epochs: int = 8
    teach_patches: int = 25_000  # seen in all, each of the unlabelled ones several times
    batch_size: int = 48
    learning_rate: float = 1e-4
    teach_learning_rate: float = 5e-4
    weight_decay: float = 0.05
    stain_jitter: float = 0.1
    smooth_labels: bool = False
    normalisation: str = "total"
    min_depth: int = MIN_DEPTH  # held-out spots of fewer counts are not scored; they are trained on all the same
    seed: int = 0
    head: Literal["ridge", "linear"] | None = None  # of a dictionary or an encoder, None for ridge
    encoder: EncoderSettings | None = None
    encoder_weights: WeightsSettings | None = None
    fusion_teacher: Literal["detached", "attached"] | None = None  # of a TRIPLEX

    @property
    def validates(self) -> bool:
        """Is something chosen on validation sections: the number of epochs, or a linear head's penalty?"""
        return self.architecture not in FITTED or self.head == "linear"

    def renewed(self) -> dict[str, bool]:
        """What a run of older versions lacks that had the same settings; such a run is not continued."""
        return {
            **({"neighbour_norm": True} if self.architecture.startswith("triplex") else {}),
            **({"plain_squared_error": True} if self.objective == "mse" else {}),
        }


@dataclass(frozen=True)
class TrainingRequest:
    """What one call trains: on which data, how, what is held out, and where the model goes.

    `normalisation` and `min_depth` are those that were asked for, before the protocol's and the settings' own.
    """

    dataset: Path
    out: Path
    settings: Settings
    folds: str
    hold_out: Sequence[str]
    allow_patient_leak: bool
    protocol: str | None
    normalisation: str | None
    min_depth: int | None
    counts_only: Path | None
    encoder: Path | None
    encoder_weights: Path | None
    unlabelled: int
    mpp: float | None
    bin_um: float | None
    licence: str
    device: str
    threads: int
    overwrite: bool
