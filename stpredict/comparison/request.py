"""The request for a comparison: what to compare, how, and where to write it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stpredict.data.bins import Bins
from stpredict.data.patch_formats import PatchFormat
from stpredict.data.reading import Reading
from stpredict.networks import FITTED, has_trunk_tokens
from stpredict.training.panels import Panel
from stpredict.training.settings import Settings, WeightsSettings, with_recipe

#: The name, for jobs and in records for rows, of ridge, nearest neighbours and predictors that see no image.
BASELINES = "baselines"


@dataclass(frozen=True)
class Comparison:
    """One call: the systems by name, the data set, what is held out, the seeds, and the folder for everything.

    All systems share `settings`; `system_settings` completes them for one. `weights` are files that trunks begin with,
    or the file of HIPT's lower network; `region_weights` are those of its upper one. `described` and `region_described`
    describe these files. All four are by system.
    """

    dataset: Path
    out: Path
    systems: Sequence[str]
    seeds: int
    settings: Settings
    panel: Panel
    folds: str
    hold_out: Sequence[str] = ()
    allow_patient_leak: bool = False
    protocol: str | None = None
    recipe: str = "ours"
    weights: Mapping[str, Path] = field(default_factory=dict)
    described: Mapping[str, WeightsSettings] = field(default_factory=dict)
    region_weights: Mapping[str, Path] = field(default_factory=dict)
    region_described: Mapping[str, WeightsSettings] = field(default_factory=dict)
    unlabelled: int = 0
    mpp: float | None = None
    bin_um: float | None = None
    where: str | None = None  # as in Reading, like the three below
    species: str | None = None
    orthologs: Path | None = None
    skip_broken: bool = False
    patch_format: PatchFormat = "raw"  # of the patches that are cut
    device: str = "auto"
    threads: int = 0  # 0 for all cores of whichever machine

    @property
    def reading(self) -> Reading:
        """How to read the data set."""
        return Reading(Bins(self.bin_um), self.where, self.species, self.orthologs, self.skip_broken)


def system_settings(request: Comparison, system: str, seed: int) -> Settings:
    """How a system is trained: the shared settings, those that only some systems have, and the requested recipe.

    A head that is fitted at once takes no paper's recipe. Under a protocol, labels and loss stay the comparison's own.
    Raises UsageError if no paper has a recipe for the system.
    """
    own = replace(
        request.settings, architecture=system, seed=seed, head="ridge" if system in FITTED else None,
        encoder_weights=request.described.get(system), region_weights=request.region_described.get(system),
        fusion_teacher="detached" if system.startswith("triplex") else None,
        teach="ridge" if has_trunk_tokens(system) else request.settings.teach,
    )  # fmt: skip
    trained = replace(own, balance=None) if system in FITTED else with_recipe(own, request.recipe)
    if request.protocol is None:
        return trained
    return replace(trained, objective=own.objective, normalisation=own.normalisation, smooth_labels=own.smooth_labels)


def folder_name(request: Comparison, system: str) -> str:
    """The folder for files of one system: its name, and the hashes of weights that it begins with or reads."""
    described = (request.described.get(system), request.region_described.get(system))
    begun_with = "".join(f"-{weights.sha256[:8]}" for weights in described if weights)
    return re.sub(r"[^\w.+=-]", "_", system) + begun_with  # a colon precedes each option
