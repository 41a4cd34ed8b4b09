"""What a network is told of a spot beside its patch: features of the patches around it, and of all spots' patches.

They are made in a first pass over the slide, once for each patch, and kept on disk in half precision. The second pass
predicts the spots. Both go on where they were interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from stpredict.arrays import Bool, Float, Float16, Float32, Int, UInt8
from stpredict.data.section import Section, demand_slides
from stpredict.data.tiles import Tiles
from stpredict.engines.engine import Engine, TwoPasses
from stpredict.model.file import Model
from stpredict.prediction.pipeline import fixed_batches
from stpredict.prediction.shards import Shards, read_array, write_array
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.neighbourhoods import Neighbourhoods, find_neighbourhoods
from stpredict.slides.raster import Raster, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide

#: Patches whose features are in one file.
FILE_PATCHES = 4096
BATCH = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PatchFeatures:
    """Features of m patches, m x width, in files of a folder, each of which is whole or not there."""

    folder: Path
    n_patches: int
    width: int

    def path(self, number: int) -> Path:
        return self.folder / f"features-{number:06d}.npy"

    def missing(self) -> list[int]:
        """The files that are not there, or damaged."""
        ends = range(0, self.n_patches, FILE_PATCHES)
        shapes = [(min(FILE_PATCHES, self.n_patches - start), self.width) for start in ends]
        return [i for i, shape in enumerate(shapes) if read_array(self.path(i), shape, np.float16) is None]

    def read(self, patches: Int) -> Float16:
        """Features of some patches, of any shape, in a further axis; zero for -1. What is not read stays on disk."""
        found = np.zeros((*patches.shape, self.width), np.float16)
        for number in np.unique(patches[patches >= 0] // FILE_PATCHES):
            here = (patches >= 0) & (patches // FILE_PATCHES == number)
            values = np.load(self.path(int(number)), mmap_mode="r", allow_pickle=False)
            found[here] = values[patches[here] % FILE_PATCHES]
        return found


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of all spots of one slide, or section."""

    around: Neighbourhoods
    features: PatchFeatures

    def neighbours(self, spots: Int) -> tuple[Float16, Bool]:
        """Of some spots: the features of the patches around them, n x 25 x width, and which lie off the slide."""
        patches = self.around.patch_of[spots]
        return self.features.read(patches), patches < 0

    def own(self) -> Float16:
        """Features of all spots' own patches, n x width."""
        return self.features.read(self.around.patch_of[:, self.around.patch_of.shape[1] // 2])


def look_around(
    folder: Path, raster: Raster, around: Neighbourhoods, patch_px: int, passes: TwoPasses, batch_size: int,
    threads: int = 2, progress: Progress | None = None,
) -> Surroundings:  # fmt: skip
    """The first pass: describe the patches that are not yet described in the `folder`.

    `progress` is told how many patches of how many are done. Raises SlideError where the slide cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = PatchFeatures(folder, len(around.centres), passes.width)
    missing = found.missing()
    parts = [np.arange(i * FILE_PATCHES, min((i + 1) * FILE_PATCHES, found.n_patches)) for i in missing]
    wanted = np.concatenate(parts) if parts else np.empty(0, np.int64)
    done, held = found.n_patches - len(wanted), 0
    buffer: list[Float16] = []
    with closing(read_patches(raster, around.centres[wanted], patch_px, threads)) as reading:
        patches = (patch for _, block in reading for patch in block)
        outputs = passes.describe(fixed_batches(patches, batch_size, (patch_px, patch_px, 3)))
        for number, part in zip(missing, parts, strict=True):
            while held < len(part):
                buffer.append(next(outputs).astype(np.float16))
                held += len(buffer[-1])
                if progress:
                    progress(min(done + held, found.n_patches), found.n_patches)
            values = np.concatenate(buffer)
            write_array(found.path(number), values[: len(part)])
            buffer, held, done = [values[len(part) :]], held - len(part), done + len(part)
    return Surroundings(around, found)


def infer_with_surroundings(
    passes: TwoPasses, known: Surroundings, order: Iterable[Int], batches: Iterable[UInt8]
) -> Iterator[Float32]:
    """The second pass: expression (B x genes) of batches of patches, which may be padded, of the spots of each."""
    tokens = passes.global_tokens(known.own(), known.around.cells)
    for spots, batch in zip(order, batches, strict=True):
        own = np.pad(spots, (0, len(batch) - len(spots)), mode="edge")
        yield passes.read_spots(batch, *known.neighbours(own), tokens[own])


def in_batches(spots: Int, batch_size: int) -> list[Int]:
    return [spots[start : start + batch_size] for start in range(0, len(spots), batch_size)]


def around_spots(model: Model, passes: TwoPasses, raster: Raster, centres: Float, mpp: Mpp) -> Neighbourhoods:
    """The patches around spots that a model looks at. Its grid's pitch is that of the spots it was trained on."""
    card = model.card
    return find_neighbourhoods(raster, centres, card["patch_px"], passes.side, mpp, card["pitch_um"])


def first_pass(
    engine: Engine, passes: TwoPasses, model: Model, shards: Shards, wanted: Sequence[int], raster: Raster,
    centres: Float, mpp: Mpp, threads: int, progress: Progress,
) -> tuple[Engine, Progress]:  # fmt: skip
    """Look around all spots of a slide; returns the engine for those of the shards that are wanted, in their order.

    What is returned beside it tells of their progress, in which looking around has its part by the number of patches.
    Raises SlideError where the slide cannot be decoded.
    """
    around = around_spots(model, passes, raster, centres, mpp)
    n_around, n_spots = len(around.centres), len(centres)

    def progress_from(first: int) -> Progress:
        return lambda done, _: progress((first + done) * n_spots // (n_around + n_spots), n_spots)

    known = look_around(
        shards.folder, raster, around, model.card["patch_px"], passes, engine.batch_size, threads, progress_from(0)
    )
    order = [batch for shard in wanted for batch in in_batches(shards.spots(shard), engine.batch_size)]
    return replace(engine, infer=partial(infer_with_surroundings, passes, known, order)), progress_from(n_around)


def look_around_sections(
    sections: Sequence[Section],
    tiles: Tiles,
    passes: TwoPasses,
    pitch_um: float,
    folder: Path,
    report: Callable[[str], None],
) -> dict[str, Surroundings]:
    """The surroundings of the spots of each section of a tiles file, from the sections' images, kept in `folder`.

    Raises DatasetError for sections whose slides are not there.
    """
    demand_slides(sections, "a network that looks around the spots")
    found = {}
    for number, section in enumerate(sections):
        centres = tiles.centres[tiles.section == section.name]
        with open_slide(section.image) as slide:

            def look(slide: Slide, number: int, section: Section, centres: Float) -> Surroundings:
                raster = make_raster(slide, section.mpp, tiles.mpp)
                around = find_neighbourhoods(raster, centres, tiles.patch_px, passes.side, section.mpp, pitch_um)
                own = folder / "-without-".join([f"section-{number}", *map(str, sorted(slide.unreadable))])
                if PatchFeatures(own, len(around.centres), passes.width).missing():
                    report(f"{section.name}: features of {len(around.centres)} patches around {len(centres)} spots")
                return look_around(own, raster, around, tiles.patch_px, passes, BATCH)

            found[section.name] = on_readable_levels(slide, partial(look, slide, number, section, centres))
    return found


def predict_in_sections(passes: TwoPasses, known: Mapping[str, Surroundings], tiles: Tiles, index: Int) -> Float:
    """What a network says of some spots of a tiles file, n x genes, each among all spots of its section."""
    parts: list[Float32] = []
    rows: list[Int] = []
    for name in np.unique(tiles.section[index]):
        place = np.flatnonzero(tiles.section[index] == name)
        in_section = np.searchsorted(np.flatnonzero(tiles.section == name), index[place])
        patches = (tiles.read_patches([i])[0] for i in index[place])
        batches = fixed_batches(patches, BATCH, (tiles.patch_px, tiles.patch_px, 3))
        outputs = infer_with_surroundings(passes, known[str(name)], in_batches(in_section, BATCH), batches)
        parts.append(np.concatenate(list(outputs))[: len(place)])
        rows.append(place)
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(parts)[order].astype(float)
