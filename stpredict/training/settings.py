"""Settings of training, as the command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stpredict.data.bins import Bins
from stpredict.data.patch_formats import PatchFormat
from stpredict.data.reading import Reading
from stpredict.evaluation import MIN_DEPTH
from stpredict.networks import FITTED, FLAGSHIP, has_tokens, has_trunk_tokens, reads_sections
from stpredict.networks.encoder_settings import EncoderSettings
from stpredict.training.defaults import BATCH_SIZE, EPOCHS, LEARNING_RATE, OBJECTIVE, STAIN_JITTER, TEACH_PATCHES
from stpredict.training.recipes import OURS, Recipe, find_recipe

#: What a network learns on unlabelled tissue: a teacher's lesson on each token, or ridge's prediction for a patch.
Teaching = Literal["dense", "ridge"]
#: What counts alike in training, in place of spots.
Balance = Literal["sections", "patients"]
TEACH_LEARNING_RATES: dict[Teaching, float] = {"dense": 1e-3, "ridge": 5e-4}


@dataclass(frozen=True)
class WeightsSettings:
    """A file of weights with which a network's trunk begins, identified by its content."""

    file: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Settings:
    """How to train. Learning rates are the peaks of one-cycle schedules."""

    architecture: str = FLAGSHIP
    objective: str = OBJECTIVE
    epochs: int = EPOCHS
    teach: Teaching = "dense"  # for networks with tokens; others are taught by ridge
    teach_patches: int = TEACH_PATCHES  # seen in all, each of the unlabelled ones several times
    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE
    teach_learning_rate: float | None = None  # TEACH_LEARNING_RATES
    weight_decay: float = 0.05
    stain_jitter: float = STAIN_JITTER
    smooth_labels: bool = False
    normalisation: str = "total"
    min_depth: int = MIN_DEPTH  # held-out spots with fewer counts are not scored; training uses them
    seed: int = 0
    head: Literal["ridge", "linear"] | None = None  # for a dictionary or an encoder; None for ridge
    encoder: EncoderSettings | None = None
    encoder_weights: WeightsSettings | None = None
    region_weights: WeightsSettings | None = None  # for HIPT's upper network; encoder_weights is for the lower
    fusion_teacher: Literal["detached", "attached"] | None = None  # for a TRIPLEX
    balance: Balance | None = None  # what counts alike in an epoch; None for spots
    recipe: Recipe | None = None  # a paper's, with its numbers in the fields above; None for ours
    teacher: EncoderSettings | None = None  # of dense teaching; None for a dictionary

    @property
    def how(self) -> Recipe:
        """The choices that options do not set: optimiser, schedule, augmentation, the epoch that is kept."""
        return self.recipe or OURS

    @property
    def taught_densely(self) -> bool:
        return self.teach == "dense" and self.teach_patches > 0 and has_tokens(self.architecture)

    @property
    def trunk_taught_densely(self) -> bool:
        """Whether the places of a trunk's map learn as tokens do. By default they do not."""
        return self.teach == "dense" and self.teach_patches > 0 and has_trunk_tokens(self.architecture)

    @property
    def learns_from_tissue(self) -> bool:
        """Whether unlabelled patches, if there are any, teach anything: a network, its trunk, or a dictionary."""
        given = self.encoder or self.encoder_weights or reads_sections(self.architecture)
        return not given and (self.teach_patches > 0 or self.architecture in FITTED)

    @property
    def taught_by_features(self) -> bool:
        """Whether the network learns from the colour and texture of unlabelled tissue."""
        return self.architecture not in FITTED and not (self.taught_densely or self.trunk_taught_densely)

    @property
    def validates(self) -> bool:
        """Whether validation sections choose something: the number of epochs, or a linear head's penalty."""
        if self.architecture in FITTED:
            return self.head == "linear"
        return self.how.keeps == "best" and self.epochs > 0

    def unvalidated_epochs(self, knows_tokens: bool) -> int:
        """Epochs on spots without validation: half, as later epochs were seen to overfit; none after dense teaching."""
        return 0 if knows_tokens else max(1, self.epochs // 2)

    def renewed(self) -> dict[str, bool]:
        """Fields that a run of an older version lacks despite the same settings; such a run is not continued."""
        return {
            **({"neighbour_norm": True} if self.architecture.startswith("triplex") else {}),
            **({"plain_squared_error": True} if self.objective == "mse" else {}),
        }


def with_recipe(settings: Settings, name: str) -> Settings:
    """The settings with a recipe's numbers. A number of epochs other than the default was requested, and stays.

    Raises UsageError as `find_recipe` does.
    """
    recipe = find_recipe(name, settings.architecture)
    if recipe is None:
        return settings
    return replace(
        settings, recipe=recipe, objective=recipe.objective, batch_size=recipe.batch_size,
        epochs=recipe.epochs if settings.epochs == Settings.epochs else settings.epochs,
        learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, normalisation=recipe.normalisation,
        smooth_labels=recipe.smooth_labels, teach_patches=0, stain_jitter=0.0,
    )  # fmt: skip


def teach_learning_rate(settings: Settings, teach: Teaching = "dense") -> float:
    """The peak learning rate on unlabelled tissue: that of the settings, or the default of the way of teaching."""
    return TEACH_LEARNING_RATES[teach] if settings.teach_learning_rate is None else settings.teach_learning_rate


@dataclass(frozen=True)
class TrainingRequest:
    """The request of one call: the data, the way of training, the held-out parts, and the path of the model.

    `normalisation` and `min_depth` are as requested, before the protocol's and the settings' own.
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
    region_weights: Path | None = None
    patch_um: float | None = None  # with an `mpp`; None for patches of 224 px
    anonymous: bool = False  # the card names neither sections nor patients
    where: str | None = None  # as in Reading, like the three below
    species: str | None = None
    orthologs: Path | None = None
    skip_broken: bool = False
    patch_format: PatchFormat = "raw"  # of the patches that are cut
    accumulate: int = 1  # the parts, one after the other, in which a batch is computed
    only: Sequence[str] = ()  # the held-out parts that this call trains, by the names of their folders; all if none
    teacher: Path | None = None
    tissue: Sequence[Path] = ()  # slides without counts, folders of these, tables that name them

    @property
    def reading(self) -> Reading:
        """How to read the data set."""
        return Reading(Bins(self.bin_um), self.where, self.species, self.orthologs, self.skip_broken)
