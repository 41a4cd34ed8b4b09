"""Pictures of a result: heatmap and overlay as pyramidal TIFF the size of the slide, a preview, the colour scale."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyvips

import stpredict
from stpredict.arrays import Float32
from stpredict.data.panel import match_genes
from stpredict.errors import ResultError, SlideError, UsageError
from stpredict.files import atomic_path
from stpredict.rendering.cells import Cells, make_cells
from stpredict.rendering.colour import ColourScale
from stpredict.rendering.preview import draw_preview
from stpredict.rendering.stream import SlideStream
from stpredict.result import Result
from stpredict.slides.slide import Mpp, Slide, open_slide

Style = Literal["heatmap", "overlay"]
STYLES: tuple[Style, ...] = ("heatmap", "overlay")
MAX_GENES_BY_DEFAULT = 16
OPACITY = 0.5
MIN_RANGE = 0.2
OVERLAY_QUALITY = 90
WHITE = 255.0


def render(
    result: Result, genes: Sequence[str], styles: Sequence[Style], out: Path, slide_path: Path | None, overwrite: bool
) -> Iterator[Path]:
    """Write the pictures of some genes and yield each; those that stand there already are yielded untouched.

    Raises UsageError for genes that the result does not hold or too many to draw unasked, ResultError for pictures
    with other settings, SlideError if the slide is gone or another one.
    """
    names = [gene.name for gene in result.genes]
    if not genes and len(names) > MAX_GENES_BY_DEFAULT:
        raise UsageError(f"{result.path.name} holds {len(names)} genes; name those to draw with --genes.")
    chosen = match_genes(genes or names, names, f"genes of {result.path.name}")
    slide_path = slide_path or result.path.parent / result.provenance["slide"]["path"]
    cells = make_cells(result.spots, result.canvas)
    for index in chosen:
        gene = result.genes[index]
        scale = colour_scale(result, index)
        stem = out / f"{result.name}.{file_name(gene.name)}"
        sidecar = stem.with_name(stem.name + ".scale.json")
        wanted = describe(result, scale, gene.held_out_correlation)
        if not overwrite and sidecar.exists() and not _same(sidecar, wanted):
            raise ResultError(
                f"{sidecar.name}: pictures of this gene with other settings stand here; --overwrite replaces them."
            )
        paths = {style: stem.with_name(f"{stem.name}.{style}.tif") for style in styles}
        preview = stem.with_name(stem.name + ".preview.png")
        targets = [*paths.values(), preview]
        fresh = not overwrite and sidecar.exists() and all(path.exists() for path in targets)
        if not fresh:
            values = result.expression(gene.name)
            for style, path in paths.items():
                write_picture(path, style, result, cells, values, scale, slide_path)
            draw_preview(preview, result, values, scale, gene.held_out_correlation)
            with atomic_path(sidecar) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1))
        yield from targets


def colour_scale(result: Result, index: int) -> ColourScale:
    """The card's range, so that slides compare and noise is not stretched; else the slide's percentiles 1 to 99."""
    gene, unit = result.genes[index].name, result.provenance["expression_unit"]
    ranges = result.provenance["display_range"]
    if ranges:
        return ColourScale(gene, float(ranges[0][index]), float(ranges[1][index]), unit, "the model's card")
    low, high = np.nanpercentile(result.expression(gene), (1, 99))
    return ColourScale(
        gene, float(low), max(float(high), float(low) + MIN_RANGE), unit, "percentiles 1 to 99 of this slide"
    )


def describe(result: Result, scale: ColourScale, held_out_correlation: float) -> dict[str, Any]:
    """The JSON beside a picture: the colour scale and what it was drawn from."""
    known = np.isfinite(held_out_correlation)
    return {
        **scale.as_dict(),
        "below_low": "first colour",
        "above_high": "last colour",
        "held_out_correlation": round(float(held_out_correlation), 4) if known else None,
        "slide": result.name,
        "model": result.provenance["model"],
        "settings": sha256(json.dumps(result.provenance["settings"], sort_keys=True).encode()).hexdigest(),
        "opacity": OPACITY,
        "stpredict": stpredict.__version__,
    }


def write_picture(
    path: Path, style: Style, result: Result, cells: Cells, values: Float32, scale: ColourScale, slide_path: Path
) -> None:
    """One pyramidal RGB TIFF that OpenSlide and QuPath open: deflate for maps, JPEG for overlays."""
    mpp = result.canvas.mpp
    colours = scale.colours(values).astype(np.float64)
    colours[~np.isfinite(values)] = WHITE
    if style == "heatmap":
        image = cells.paint(colours, np.full(3, WHITE)).cast("uchar")
        save_pyramid(image, path, mpp, compression="deflate", predictor="horizontal")
        return
    with open_source_slide(slide_path, result) as slide:
        stream = SlideStream(slide)
        try:
            image = blend(stream.image, cells, colours, np.isfinite(values))
            save_pyramid(image, path, mpp, compression="jpeg", Q=OVERLAY_QUALITY)
        except ResultError as error:
            raise stream.error or error from error


def blend(base: pyvips.Image, cells: Cells, colours: np.ndarray, known: np.ndarray) -> pyvips.Image:
    """`base` under half-transparent colours; untouched where there is no spot."""
    opacity = np.where(known, OPACITY, 0.0)[:, None]
    painted = cells.paint(np.hstack([colours * opacity, 1 - opacity]), np.array([0.0, 0, 0, 1]))
    return (base * painted[3] + painted[0:3] + 0.5).cast("uchar")


def open_source_slide(path: Path, result: Result) -> Slide:
    """The slide that a result was made from. Raises SlideError if it is not there or another file."""
    if not path.is_file():
        where = os.path.normpath(path)
        raise SlideError(f"{where}: there is no such file; name the slide of {result.path.name} with --slide.")
    slide = open_slide(path)
    if slide.fingerprint() != result.provenance["slide"]["fingerprint"]:
        slide.close()
        raise SlideError(f"{path}: is not the slide that {result.path.name} was made from.")
    return slide


def save_pyramid(image: pyvips.Image, path: Path, mpp: Mpp, **options: Any) -> None:
    """A classic tiled pyramid with its resolution, as OpenSlide and so QuPath want it."""
    image = image.copy(interpretation="srgb", xres=1000 / mpp.x, yres=1000 / mpp.y)
    with atomic_path(path) as temporary:
        try:
            image.tiffsave(str(temporary), tile=True, tile_width=256, tile_height=256, pyramid=True,
                           bigtiff=True, resunit="cm", **options)  # fmt: skip
        except pyvips.Error as error:
            raise ResultError(f"{path.name}: cannot be written ({str(error).strip().splitlines()[-1]}).") from error


def file_name(gene: str) -> str:
    """A gene's name as part of a file name; what could be part of a path is replaced, and a digest keeps it unique."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", gene)[:64]
    return safe if safe == gene else f"{safe}-{sha256(gene.encode()).hexdigest()[:8]}"


def _same(sidecar: Path, wanted: dict[str, Any]) -> bool:
    try:
        found = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {**found, "stpredict": None} == {**wanted, "stpredict": None}
