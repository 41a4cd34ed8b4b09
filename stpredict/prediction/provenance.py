"""What a result records about how it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stpredict
from stpredict.arrays import Int
from stpredict.model.file import Model
from stpredict.model.reliability import held_out_correlation, read_reliability
from stpredict.prediction.job import Job
from stpredict.prediction.relative import measured_in_training
from stpredict.prediction.request import Request
from stpredict.result.file import SPREAD_MEANS, Gene
from stpredict.slides.tissue import MASK_UM

if TYPE_CHECKING:
    from stpredict.prediction.preparation import Prepared

TTA = {
    "expression": "mean over the eight flips and rotations of each patch",
    "spread": f"layer of their standard deviations, {SPREAD_MEANS}; left out where the model knows no turns",
}


def describe_prediction(prepared: Prepared, job: Job, model: Model, request: Request) -> dict[str, Any]:
    """A result's record of slide, model and grid. Of the slide's own metadata it contains only the resolution."""
    slide, raster, spots = prepared.slide, prepared.raster, prepared.spots
    used = slide.resolution.used
    diameter_um = model.read_diameter_um(spots.pitch_um)
    return {
        "stpredict": stpredict.__version__,
        "model": {"name": model.name, "sha256": model.sha256},
        "expression_unit": model.card["expression_unit"],
        **({"tta": TTA} if request.tta else {}),
        "settings": prepared.settings,
        "slide": {
            "name": job.name,
            "path": "" if job.anonymous else path_from(slide.path, job.result.parent),
            "fingerprint": prepared.settings["slide"],
            "dimensions": list(slide.dimensions),
            "bounds": list(slide.bounds),
            "native_mpp": list(slide.native_mpp) if slide.native_mpp else None,
            "stated_mpp": {one.by: list(one.mpp) for one in slide.resolution.statements},
            "given_mpp": request.of(job).mpp,
            "mpp_by": "--mpp" if request.of(job).mpp else used.by if used else None,
            "of_file": list(slide.of_file),
            "mpp": list(prepared.mpp),
            "reader": slide.reader,
            "appearance": slide.appearance,
        },
        "tissue": {"mask_um": MASK_UM, "tissue_fraction_of_slide": round(float(prepared.tissue.mask.mean()), 4)},
        "raster": {
            "mpp": raster.mpp,
            "level": raster.level,
            "scale": list(raster.scale),
            **({"unreadable_levels": sorted(slide.unreadable)} if slide.unreadable else {}),
        },
        "lattice": {
            "layout": spots.layout,
            "pitch_um": spots.pitch_um,
            "spot_diameter_um": diameter_um,
            "oversampled": spots.pitch_um < diameter_um,
        },
    }


def path_from(slide: Path, folder: Path) -> str:
    """The slide's path relative to the result's folder; its name alone if there is no such path (another drive)."""
    try:
        return os.path.relpath(slide.resolve(), folder.resolve())
    except ValueError:
        return slide.name


def describe_genes(model: Model, columns: Int) -> list[Gene]:
    """The result's entry for each gene."""
    unknown = np.full(len(model.panel), np.nan)
    mean = model.card["genes"]["training_mean"] or unknown
    found = read_reliability(model.card)
    low, ridge, high = (found.low, found.ridge, found.high) if found else (unknown, unknown, unknown)
    correlation = held_out_correlation(model.card)
    measured = measured_in_training(model)
    widths = {f"half_width_{one['level'] * 100:g}": one["half_width"] for one in model.card.get("intervals", [])}
    return [
        Gene(
            model.panel[i], correlation[i], mean[i], low[i], ridge[i], high[i],
            **{name: np.nan if width[i] is None else width[i] for name, width in widths.items()},
            measured_in_training=np.nan if measured is None else float(measured[i]),
        )
        for i in columns
    ]  # fmt: skip


def display_range(model: Model, columns: Int) -> list[list[float]] | None:
    """The range of each gene's colours, lowest and highest, on the card; None for an imported model without it."""
    bounds = model.card["genes"]["display_range"]
    return [[side[i] for i in columns] for side in bounds] if bounds else None
