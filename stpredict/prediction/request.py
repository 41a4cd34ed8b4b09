"""A request: whether it can work, and how far the model is to be trusted with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stpredict.console import Report
from stpredict.data.panel import match_genes
from stpredict.engines.engine import EngineRequest
from stpredict.errors import UsageError
from stpredict.model.file import Model
from stpredict.model.origin import told_origin
from stpredict.model.reliability import PREDICTED_FROM, held_out_correlation, read_reliability
from stpredict.prediction.job import Job
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.storage.files import is_there, output_folders

if TYPE_CHECKING:  # slow to import, and not needed by a process that only starts others
    from stpredict.slides.grid import GridRequest
    from stpredict.slides.mask import Origin

#: Up to so many requested genes, each one's held-out correlation is reported.
MAX_LISTED = 40
#: Called with a slide, the number of its spots that are done, and of all; with (0, 0) before the slide is read.
SlideProgress = Callable[[Job, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to predict and how. No `genes` means the whole panel, no `pitch_um` the spot diameter of the card."""

    genes: Sequence[str] = ()
    pitch_um: float | None = None
    layout: Literal["square", "hex"] = "square"
    spots_file: Path | None = None
    min_tissue: float = 0.25
    mpp: float | None = None
    allow_upsampling: bool = False
    engine: EngineRequest = field(default_factory=EngineRequest)
    relative: bool = False  # also each gene relative to its own distribution
    tta: bool = False  # the mean of each patch's eight flips and rotations, and their spread
    overwrite_before: float = 0.0  # results older than this, in seconds since 1970, are replaced
    mask: Path | None = None
    mask_origin: Origin = "slide"

    def of(self, job: Job) -> Request:
        """The request with the options that were given for this slide alone."""
        return replace(self, mpp=self.mpp if job.mpp is None else job.mpp, mask=job.mask or self.mask)

    @property
    def patches_per_spot(self) -> int:
        return SYMMETRIES if self.tta else 1

    def grid(self, model: Model) -> GridRequest:
        from stpredict.slides.grid import GridRequest
        from stpredict.slides.mask import MaskRequest

        diameter_um = model.card["spot_diameter_um"]
        return GridRequest(
            diameter_um,
            diameter_um if self.pitch_um is None else self.pitch_um,
            self.layout,
            self.spots_file,
            self.min_tissue,
            MaskRequest(self.mask, self.mask_origin) if self.mask else None,
        )


def check_request(model: Model, request: Request) -> None:
    """Raise UsageError for a call that no slide could satisfy."""
    match_genes(request.genes, model.panel)
    if len(set(request.genes)) < len(request.genes):
        raise UsageError("--genes names a gene more than once.")
    if request.tta and model.reads_slide:
        raise UsageError(f"--tta: turns patches alone, but {model.name} also looks at the slide around them.")
    if request.mask and request.spots_file:
        raise UsageError("--mask chooses among the spots of a lattice; those of --spots are all predicted.")
    if not 0 <= request.min_tissue <= 1:
        raise UsageError(f"--min-tissue {request.min_tissue:g}: must lie between 0 and 1.")
    if request.mpp is not None and not 0 < request.mpp < math.inf:
        raise UsageError(f"--mpp {request.mpp:g}: must be a positive number of micrometres per pixel.")
    if request.pitch_um is not None and not 0 < request.pitch_um < math.inf:
        raise UsageError(f"--pitch {request.pitch_um:g}: must be finite and larger than a pixel of the slide.")


def folders_of_results(jobs: Sequence[Job], request: Request) -> AbstractContextManager[None]:
    """Make the folders for results; those that stay empty are removed in the end.

    Raises UsageError if one cannot be made.
    """
    return output_folders(*{job.result.parent for job in jobs if request.overwrite_before or not is_there(job.result)})


def warn_of_unpredicted_genes(model: Model, genes: Sequence[str], report: Report) -> None:
    """Report the requested genes that the model could not predict in its tests, or no better than ridge.

    For a model that others published, report who they are, what they say about it, and that it was not tested here.
    """
    if origin := told_origin(model.card):
        report(origin)
        return
    correlation = held_out_correlation(model.card)
    if not np.isfinite(correlation).any():
        report(f"{model.name} was never tested on held-out tissue.")
        return
    asked = match_genes(genes, model.panel) or range(len(model.panel))
    found = read_reliability(model.card)
    if found:
        doubtful = [i for i in asked if not found.reliable[i]]
        if doubtful:
            which = f"{len(doubtful)} of these {len(asked)} genes" if len(asked) > 1 else model.panel[asked[0]]
            report(
                f"{model.name} does not predict {which} reliably: held-out correlation is not clearly above 0, or "
                f"ridge regression did as well ({found.how})"
                + (f"; --genes reliable takes the other {len(asked) - len(doubtful)}" if not genes else "")
            )
        if len(genes) > MAX_LISTED:
            low, middle, high = np.nanpercentile(correlation[asked], (0, 50, 100))
            report(
                f"held-out correlation of these {len(genes)} genes: {low:.2f} to {high:.2f}, median {middle:.2f}; "
                "the result holds each one"
            )
        elif genes:
            report(f"held-out correlation of each gene ({found.how}), and that of ridge regression:")
            width = max(map(len, genes))
            for i in asked:
                report(
                    f"  {model.panel[i]:{width}}  {correlation[i]:6.2f} ({found.low[i]:.2f} to {found.high[i]:.2f}), "
                    f"ridge {found.ridge[i]:.2f}{'' if found.reliable[i] else '  not reliable'}"
                )
        return
    poor = [i for i in asked if not correlation[i] >= PREDICTED_FROM]
    if poor:
        listed = poor if 0 < len(genes) <= MAX_LISTED else []
        named = ": " + ", ".join(f"{model.panel[i]} ({correlation[i]:.2f})" for i in listed) if listed else ""
        which = f"{len(poor)} of these {len(asked)} genes" if len(asked) > 1 else "this gene"
        report(
            f"{model.name} could not predict {which} when it was tested "
            f"(held-out correlation below {PREDICTED_FROM:g}){named}"
        )
