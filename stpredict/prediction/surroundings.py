"""What a network sees of a spot besides its patch: features of the patches around it, and of all spots' patches.

A first pass over the slide makes them, once for each patch, and keeps them on disk, in half precision if that is
enough. The second pass predicts the spots. Both passes resume where they were interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Float16, Float32, Int, UInt8
from stpredict.data.section import Section, demand_slides
from stpredict.data.tiles import Tiles
from stpredict.engines.engine import Engine, TwoPasses
from stpredict.errors import SpotsError
from stpredict.model.file import Model
from stpredict.prediction.pipeline import fixed_batches
from stpredict.prediction.shards import Shards, read_array, write_array
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.neighbourhoods import SQUARES, Neighbourhoods, find_neighbourhoods, find_tiles
from stpredict.slides.raster import Raster, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide

#: Patches with features in one file at most, and bytes of such a file at most.
FILE_PATCHES, FILE_BYTES = 4096, 64 << 20
BATCH = 16

Progress = Callable[[int, int], None]
Stored = Float16 | Float32


@dataclass(frozen=True)
class PatchFeatures:
    """Features of m patches, m x width, in the files of a folder. Each file is whole or missing."""

    folder: Path
    n_patches: int
    width: int
    dtype: type[np.float16] | type[np.float32] = np.float16

    @property
    def per_file(self) -> int:
        return max(1, min(FILE_PATCHES, FILE_BYTES // (2 * self.width)))

    def path(self, number: int) -> Path:
        return self.folder / f"features-{number:06d}.npy"

    def missing(self) -> list[int]:
        """The numbers of files that are missing or damaged."""
        starts = range(0, self.n_patches, self.per_file)
        shapes = [(min(self.per_file, self.n_patches - start), self.width) for start in starts]
        return [i for i, shape in enumerate(shapes) if read_array(self.path(i), shape, self.dtype) is None]

    def read(self, patches: Int) -> Stored:
        """Features of `patches`, an array of indices of any shape, along a further last axis; zeros for -1."""
        found = np.zeros((*patches.shape, self.width), self.dtype)
        for number in np.unique(patches[patches >= 0] // self.per_file):
            here = (patches >= 0) & (patches // self.per_file == number)
            values = np.load(self.path(int(number)), mmap_mode="r", allow_pickle=False)
            found[here] = values[patches[here] % self.per_file]
        return found

    def leading(self, width: int) -> Stored:
        """The first `width` features of all patches, m x width."""
        files = range(-(-self.n_patches // self.per_file))
        parts = [np.load(self.path(number), mmap_mode="r", allow_pickle=False)[:, :width] for number in files]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of all spots of one slide, or section."""

    around: Neighbourhoods
    features: PatchFeatures

    def neighbours(self, spots: Int) -> tuple[Stored, Bool]:
        """Features of the patches around some spots, n x side^2 x width, and which of these lie off the slide."""
        patches = self.around.patch_of[spots]
        return self.features.read(patches), patches < 0

    def own(self) -> Stored:
        """Features of all spots' own patches, n x width."""
        return self.features.read(self.own_patches)

    @property
    def own_patches(self) -> Int:
        """The index of each spot's own patch: n."""
        return self.around.patch_of[:, self.around.patch_of.shape[1] // 2]


def look_around(
    folder: Path, raster: Raster, around: Neighbourhoods, patch_px: int, passes: TwoPasses, batch_size: int,
    threads: int = 2, progress: Progress | None = None,
) -> Surroundings:  # fmt: skip
    """The first pass: describe all patches that the `folder` does not describe yet.

    `progress` gets the numbers of patches done and of all. Raises SlideError if the slide cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = PatchFeatures(folder, len(around.centres), passes.width, passes.stored)
    missing = found.missing()
    size = found.per_file
    parts = [np.arange(i * size, min((i + 1) * size, found.n_patches)) for i in missing]
    wanted = np.concatenate(parts) if parts else np.empty(0, np.int64)
    done, held = found.n_patches - len(wanted), 0
    buffer: list[Any] = []
    with closing(read_patches(raster, around.centres[wanted], patch_px, threads)) as reading:
        patches = (patch for _, block in reading for patch in block)
        outputs = passes.describe(fixed_batches(patches, batch_size, (patch_px, patch_px, 3)))
        for number, part in zip(missing, parts, strict=True):
            while held < len(part):
                buffer.append(next(outputs).astype(passes.stored))
                held += len(buffer[-1])
                if progress:
                    progress(min(done + held, found.n_patches), found.n_patches)
            values = np.concatenate(buffer)
            write_array(found.path(number), values[: len(part)])
            buffer, held, done = [values[len(part) :]], held - len(part), done + len(part)
    return Surroundings(around, found)


def infer_with_surroundings(
    passes: TwoPasses, known: Surroundings, order: Iterable[Int], batches: Iterable[UInt8], pitch: float = np.inf
) -> Iterator[Float32]:
    """The second pass: expression (B x genes) for each batch of patches, which may be padded. `order` has its spots.

    If the `pitch`, in squares of a tile, is smaller than a spot, a network that `divides` predicts smaller spots.
    """
    tiles, around = passes.tiles, known.around
    places = around.centres[known.own_patches] if passes.reads_centres else around.cells
    tokens = passes.global_tokens(known.features.leading(tiles.n_leading) if tiles else known.own(), places)
    for spots, batch in zip(order, batches, strict=True):
        own = np.pad(spots, (0, len(batch) - len(spots)), mode="edge")
        if tiles and around.inside is not None:
            radius = min(tiles.radius, pitch / 2) if tiles.divides else tiles.radius
            of_tiles = tokens[around.patch_of[own]]
            yield passes.read_spots(*known.neighbours(own), of_tiles, around.inside[own], radius=radius)
        else:
            yield passes.read_spots(batch, *known.neighbours(own), tokens[own])


def in_batches(spots: Int, batch_size: int) -> list[Int]:
    return [spots[start : start + batch_size] for start in range(0, len(spots), batch_size)]


def around_spots(model: Model, passes: TwoPasses, raster: Raster, centres: Float, mpp: Mpp) -> Neighbourhoods:
    """As `find_around`, for a model. The pitch of the grid is that of the spots it was trained on."""
    return find_around(passes, raster, centres, model.card["patch_px"], mpp, model.card["pitch_um"])


def find_around(
    passes: TwoPasses, raster: Raster, centres: Float, patch_px: int, mpp: Mpp, pitch_um: float
) -> Neighbourhoods:
    """The patches around spots that a network looks at.

    If the spots lie in more columns or rows than the network was trained on, a note of the slide says so. Raises
    SpotsError if they lie in more than the network knows.
    """
    if passes.tiles:
        tiles = passes.tiles
        return find_tiles(raster, centres, tiles.tile_px, passes.side, tiles.region, tiles.shifts)
    step_px = round(pitch_um / raster.mpp) if passes.at_pitch else None
    around = find_neighbourhoods(raster, centres, patch_px, passes.side, mpp, pitch_um, step_px)
    n_rows, n_columns = np.ptp(around.cells, axis=0) + 1
    lie = f"its spots lie in {n_columns} columns and {n_rows} rows of {pitch_um:g} um, and the network"
    if passes.positions is not None and max(n_rows, n_columns) > passes.positions:
        raise SpotsError(
            f"{raster.slide.path.name}: {lie} knows {passes.positions}; predict parts of the slide, each with a --mask."
        )
    if passes.learnt is not None and max(n_rows, n_columns) > passes.learnt:
        beyond = f"{lie} was trained on {passes.learnt}; of places beyond these it has learnt nothing"
        raster.slide.notes += [beyond] if beyond not in raster.slide.notes else []
    return around


def first_pass(
    engine: Engine, passes: TwoPasses, model: Model, shards: Shards, wanted: Sequence[int], raster: Raster,
    centres: Float, mpp: Mpp, threads: int, progress: Progress, pitch_um: float,
) -> tuple[Engine, Progress]:  # fmt: skip
    """Look around all spots of a slide. Returns an engine that predicts the `wanted` shards in their order.

    Also returns a function that reports their progress; the first pass takes its part of it, by numbers of patches.
    Raises SlideError if the slide cannot be decoded.
    """
    around = around_spots(model, passes, raster, centres, mpp)
    n_around, n_spots = len(around.centres), len(centres)

    def progress_from(first: int) -> Progress:
        return lambda done, _: progress((first + done) * n_spots // (n_around + n_spots), n_spots)

    px = passes.tiles.tile_px if passes.tiles else model.card["patch_px"]
    known = look_around(shards.folder, raster, around, px, passes, engine.batch_size, threads, progress_from(0))
    pitch = pitch_um / (px / SQUARES * model.card["mpp"])
    order = [batch for shard in wanted for batch in in_batches(shards.spots(shard), engine.batch_size)]
    infer = partial(infer_with_surroundings, passes, known, order, pitch=pitch)
    return replace(engine, infer=infer), progress_from(n_around)


def look_around_sections(
    sections: Sequence[Section],
    tiles: Tiles,
    passes: TwoPasses,
    pitch_um: float,
    folder: Path,
    report: Callable[[str], None],
    these: slice = slice(None),
) -> dict[str, Surroundings]:
    """The surroundings of the spots in each section of a tiles file, made from the sections' images, kept in `folder`.

    Only `these` sections are looked at, by default all. Raises DatasetError for sections whose slides are missing.
    """
    demand_slides(sections, "a network that looks around the spots")
    found = {}
    for number, section in list(enumerate(sections))[these]:
        centres = tiles.centres[tiles.section == section.name]
        with open_slide(section.image) as slide:

            def look(slide: Slide, number: int, section: Section, centres: Float) -> Surroundings:
                raster = make_raster(slide, section.mpp, tiles.mpp)
                around = find_around(passes, raster, centres, tiles.patch_px, section.mpp, pitch_um)
                own = folder / "-without-".join([f"section-{number}", *map(str, sorted(slide.unreadable))])
                if PatchFeatures(own, len(around.centres), passes.width, passes.stored).missing():
                    report(f"{section.name}: features of {len(around.centres)} patches around {len(centres)} spots")
                px = passes.tiles.tile_px if passes.tiles else tiles.patch_px
                return look_around(own, raster, around, px, passes, BATCH)

            found[section.name] = on_readable_levels(slide, partial(look, slide, number, section, centres))
    return found


def predict_in_sections(passes: TwoPasses, known: Mapping[str, Surroundings], tiles: Tiles, index: Int) -> Float:
    """A network's predictions, n x genes, for some spots of a tiles file, each among all spots of its section."""
    rows, parts = zip(*read_in_sections(passes, known, tiles, index), strict=True)
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(parts)[order].astype(float)


def read_in_sections(
    passes: TwoPasses, known: Mapping[str, Surroundings], tiles: Tiles, index: Int
) -> Iterator[tuple[Int, Float32]]:
    """As `predict_in_sections`, part by part: positions in `index`, and the predictions for these spots."""
    for name in np.unique(tiles.section[index]):
        place = np.flatnonzero(tiles.section[index] == name)
        in_section = np.searchsorted(np.flatnonzero(tiles.section == name), index[place])
        patches = (tiles.read_patches([i])[0] for i in index[place])
        batches = fixed_batches(patches, BATCH, (tiles.patch_px, tiles.patch_px, 3))
        outputs = infer_with_surroundings(passes, known[str(name)], in_batches(in_section, BATCH), batches)
        for rows, output in zip(in_batches(place, BATCH), outputs, strict=True):
            yield rows, output[: len(rows)]
