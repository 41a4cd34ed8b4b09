"""Write the grid that a prediction would use, to look at or to reuse: a table of spots, a picture, and the patches."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw

from stpredict.console import log
from stpredict.errors import UsageError
from stpredict.model.file import Model
from stpredict.prediction.job import slide_name
from stpredict.prediction.request import Request
from stpredict.slides.grid import choose_spots
from stpredict.slides.lattice import Spots
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.overview import make_thumbnail
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide, resolve_mpp
from stpredict.slides.tissue import Tissue
from stpredict.storage.files import atomic_path, demand_new

OUTSIDE_TISSUE = 0.45  # brightness
RING = "#ffe000"


def tile_slide(path: Path, model: Model, request: Request, out: Path, patches: bool, overwrite: bool) -> Iterator[Path]:
    """Write SLIDE.spots.csv, SLIDE.tissue.png and, with `patches`, SLIDE.tiles.h5; yield each.

    Raises SlideError for a slide that a prediction would refuse, UsageError for files that exist unless `overwrite`.
    """
    table, picture, tiles = (out / f"{slide_name(path)}.{kind}" for kind in ("spots.csv", "tissue.png", "tiles.h5"))
    if request.spots_file and table.resolve() == request.spots_file.resolve():
        raise UsageError(f"--spots {request.spots_file}: would be overwritten; write into another folder (-o).")
    if not overwrite:
        demand_new(*(table, picture, tiles)[: 3 if patches else 2])
    with open_slide(path) as slide:
        mpp = resolve_mpp(slide, request.mpp)
        make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)  # fails early if the slide is too coarse
        diameter_um = model.card["spot_diameter_um"]
        tissue, spots, fraction = choose_spots(slide, mpp, request.grid(model), request.engine.threads)
        with atomic_path(table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("x", "y", "row", "col", "tissue_fraction"))
            for (x, y), row, column, share in zip(spots.centres, spots.row, spots.column, fraction, strict=True):
                writer.writerow((f"{x:.3f}", f"{y:.3f}", row, column, f"{share:.3f}"))
        yield table
        with atomic_path(picture) as temporary:
            draw_grid(slide, mpp, tissue, spots, diameter_um, request.engine.threads).save(temporary)
        yield picture
        if patches:
            with atomic_path(tiles) as temporary:
                on_readable_levels(slide, lambda: write_patches(slide, mpp, spots, model, request, temporary))
            yield tiles
        for note in slide.notes:
            log("warning", f"{path.name}: {note}.", slide=str(path))


def write_patches(slide: Slide, mpp: Mpp, spots: Spots, model: Model, request: Request, path: Path) -> None:
    """Write the patches of all spots. Raises LevelError if the level that they are cut from cannot be decoded."""
    raster = make_raster(slide, mpp, model.card["mpp"], request.allow_upsampling)
    patch_px, threads = model.card["patch_px"], request.engine.threads
    with h5py.File(path, "w") as file:
        file.attrs.update(format="stpredict-patches", format_version=1, patch_px=patch_px, mpp=raster.mpp)
        file["centres"] = spots.centres
        stored = file.create_dataset("patches", (len(spots), *model.patch_shape), np.uint8)
        with closing(read_patches(raster, spots.centres, patch_px, threads, model.views)) as blocks:
            for index, block in blocks:
                for i, patch in zip(index, block, strict=True):
                    stored[i] = patch


def draw_grid(slide: Slide, mpp: Mpp, tissue: Tissue, spots: Spots, diameter_um: float, threads: int) -> Image.Image:
    """The slide's thumbnail, dark outside the tissue, with a ring around each spot."""
    thumbnail, downsample = make_thumbnail(slide, tissue.overview, threads)
    height, width = thumbnail.shape[:2]
    mask = np.asarray(Image.fromarray(tissue.mask).resize((width, height), Image.Resampling.NEAREST))
    image = Image.fromarray(np.where(mask[..., None], thumbnail, (thumbnail * OUTSIDE_TISSUE).astype(np.uint8)))
    draw = ImageDraw.Draw(image)
    radius_x, radius_y = (diameter_um / 2 / um / downsample for um in mpp)
    for x, y in spots.centres / downsample:
        draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), outline=RING, width=2)
    return image
