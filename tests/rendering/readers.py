"""What other programs see in a TIFF: OpenSlide, tifffile, Bio-Formats, viv, and ome-types its metadata."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile

HERE = Path(__file__).parent
TILE = 256
#: What every reader decodes: none, LZW, JPEG, deflate.
COMPRESSIONS = {1, 5, 7, 8}
#: Reduced levels are read from their corner, where OpenSlide does not interpolate: it begins anew after so many pixels.
CORNER_PX = 4096


@dataclass(frozen=True)
class Job:
    """A picture and, for each of its levels, the pixels (n x 2, x and y) that a reader shall decode."""

    path: Path
    asked: list[np.ndarray]


@dataclass(frozen=True)
class Seen:
    """What a reader sees: sizes of levels, um per pixel, the asked pixels (n x bands) of each level, and channels.

    `more` holds whatever else it can tell, as (what, whether it is right, what it is).
    """

    sizes: list[tuple[int, int]]
    mpp: tuple[float, float]
    pixels: list[np.ndarray]
    dtype: str
    names: list[str] | None = None
    colours: list[int] | None = None
    more: list[tuple[str, bool, str]] = field(default_factory=list)


def read_openslide(job: Job) -> Seen:
    with openslide.OpenSlide(job.path) as slide:

        def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            return np.asarray(slide.read_region((x, y), level, (width, height)))

        pixels = []
        for level, asked in enumerate(job.asked[: slide.level_count]):
            width, height = slide.level_dimensions[level]
            if level == 0:
                pixels.append(_by_tile(asked, lambda x, y: read(0, x * TILE, y * TILE, TILE, TILE)))
                continue
            width, height = min(width, CORNER_PX), min(height, CORNER_PX)
            whole = read(level, 0, 0, width, height)
            x, y = asked.T
            inside = (x < width) & (y < height)
            values = np.full((len(asked), 4), np.nan)
            values[inside] = whole[y[inside], x[inside]]
            pixels.append(values)
        properties = slide.properties
        more = [
            ("vendor", properties["openslide.vendor"] == "generic-tiff", properties["openslide.vendor"]),
            ("no bounds to crop to", not any("openslide.bounds" in key for key in properties), ""),
            ("opaque", all((values[~np.isnan(values[:, 3]), 3] == 255).all() for values in pixels), ""),
        ]
        mpp = float(properties.get("openslide.mpp-x", "nan")), float(properties.get("openslide.mpp-y", "nan"))
        return Seen([*slide.level_dimensions], mpp, [values[:, :3] for values in pixels], "uint8", more=more)


def read_tifffile(job: Job) -> Seen:
    with tifffile.TiffFile(job.path) as tiff:
        (series,) = tiff.series
        pixels, sizes, resolutions = [], [], []
        for level, asked in zip(series.levels, job.asked, strict=False):
            pages = list(level.pages)
            planes = [
                _by_tile(asked, lambda column, row, page=page: _decode(tiff, page, column, row)) for page in pages
            ]
            pixels.append(np.concatenate(planes, axis=1))
            sizes.append((pages[0].imagewidth, pages[0].imagelength))
            unit_um = {2: 25_400, 3: 10_000}[pages[0].tags["ResolutionUnit"].value]
            ratios = (pages[0].tags[name].value for name in ("XResolution", "YResolution"))
            resolutions.append(tuple(unit_um * below / above for above, below in ratios))
        sizes += [(level.shape[-1], level.shape[-2]) for level in series.levels[len(sizes) :]]
        all_pages = [page for level in series.levels for page in level.pages]
        compressions = {int(page.keyframe.compression) for page in all_pages}
        predictors = {int(page.keyframe.predictor) for page in all_pages}
        reduced = [level.pages[0].keyframe.subfiletype & 1 for level in series.levels]
        in_sub_ifds = len(tiff.pages[0].subifds or ()) == len(series.levels) - 1
        in_chain = len(tiff.pages) == len(series.levels)
        with job.path.open("rb") as file:
            magic = file.read(4)
        more = [
            ("BigTIFF", magic in (b"II\x2b\0", b"MM\0\x2b"), repr(magic)),
            ("tiled", all(page.keyframe.is_tiled for page in all_pages), ""),
            ("a compression that all decode", compressions <= COMPRESSIONS, str(compressions)),
            ("no predictor of floats", 3 not in predictors, str(predictors)),
            ("lower levels marked as reduced", reduced == [0] + [1] * (len(reduced) - 1), str(reduced)),
            ("levels where readers look", in_sub_ifds if tiff.is_ome else in_chain, ""),
            ("OME-XML", tiff.is_ome == job.path.name.endswith(".ome.tif"), ""),
        ]
        if tiff.is_ome or compressions != {7}:  # libvips gives all levels the resolution of the first
            steps = [2**level * np.array(resolutions[0]) for level in range(len(resolutions))]
            more.append(("resolution of lower levels", np.allclose(resolutions, steps, rtol=1e-5), ""))
        return Seen(sizes, resolutions[0], pixels, str(series.dtype), more=more)


def _by_tile(pixels: np.ndarray, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Values of pixels, n x bands, from tiles (rows x columns x bands) that are read once each."""
    values: list[np.ndarray] = [np.empty(0)] * len(pixels)
    tiles, tile_of = np.unique(pixels // TILE, axis=0, return_inverse=True)
    for number, (column, row) in enumerate(tiles.tolist()):
        tile = read(column, row)
        for i in np.flatnonzero(tile_of.ravel() == number):
            x, y = pixels[i] - (column * TILE, row * TILE)
            values[i] = tile[y, x]
    return np.array(values, dtype=float)


def _decode(tiff: tifffile.TiffFile, page: tifffile.TiffPage, column: int, row: int) -> np.ndarray:
    key = page.keyframe
    index = row * math.ceil(key.imagewidth / key.tilewidth) + column
    tiff.filehandle.seek(page.dataoffsets[index])
    data = tiff.filehandle.read(page.databytecounts[index])
    segment, _, _ = key.decode(data, index, jpegtables=key.jpegtables)
    return np.asarray(segment)[0]


def read_bioformats(jobs: Sequence[Job]) -> list[Seen]:
    requests = []
    for job in jobs:
        requests.append(f"open {job.path.resolve()}")
        for level, asked in enumerate(job.asked):
            by_tile = asked[np.lexsort((asked // TILE).T)]
            requests += [f"pixel {level} {x} {y}" for x, y in by_tile.tolist()]
    # most of the time goes into starting Java
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", os.environ["BIOFORMATS_JAR"]]
    answers = _run([*command, str(HERE / "ReadTiles.java")], "\n".join(requests))
    _, *pictures = f"\n{answers}".split("\npicture\t")
    return [_seen_by_bioformats(job, answer) for job, answer in zip(jobs, pictures, strict=True)]


def _seen_by_bioformats(job: Job, answer: str) -> Seen:
    told, *lines = (line.split("\t") for line in answer.splitlines())
    sizes = [(int(line[1]), int(line[2])) for line in lines if line[0] == "level"]
    channels = [line[1:] for line in lines if line[0] == "channel"]
    pixels: list[dict[tuple[int, int], list[float]]] = [{} for _ in sizes]
    for line in lines:
        if line[0] == "pixel":
            pixels[int(line[1])][int(line[2]), int(line[3])] = [float(value) for value in line[4:]]
    levels = zip(pixels, job.asked, strict=False)  # it does not see the lower levels of plain TIFFs
    values = [np.array([level[x, y] for x, y in asked.tolist()]) for level, asked in levels]
    ome = job.path.name.endswith(".ome.tif")
    reader, series, dtype, mpp_x, mpp_y = told
    more = [("one series", series == "1", series), ("reader", (reader == "OMETiffReader") == ome, reader)]
    mpp, dtype = (float(mpp_x), float(mpp_y)), {"float": "float32"}.get(dtype, dtype)
    if not ome:
        return Seen(sizes, mpp, values, dtype, more=more)
    names, colours = [name for _, name in channels], [int(colour) & 0xFFFFFFFF for colour, _ in channels]
    return Seen(sizes, mpp, values, dtype, names, colours, more)


def read_viv(jobs: Sequence[Job]) -> list[Seen]:
    requests = [{"path": str(job.path.resolve()), "pixels": [asked.tolist() for asked in job.asked]} for job in jobs]
    return [_seen_by_viv(seen) for seen in json.loads(_run(["node", str(HERE / "read_viv.mjs")], json.dumps(requests)))]


def _seen_by_viv(seen: dict[str, Any]) -> Seen:
    sizes = [(level["width"], level["height"]) for level in seen["levels"]]
    names = [channel["name"] for channel in seen["channels"]]
    colours = [int.from_bytes(bytes(channel["color"])) for channel in seen["channels"]]
    more = [("unit of um per pixel", seen["units"] == ["µm", "µm"], str(seen["units"]))]
    pixels = [np.array(values, dtype=float) for values in seen["pixels"]]
    return Seen(sizes, tuple(seen["mpp"]), pixels, seen["type"].lower(), names, colours, more)


def read_ome_types(job: Job) -> Seen:
    """Raises an error of its own if the XML does not obey the schema."""
    import ome_types

    with tifffile.TiffFile(job.path) as tiff:
        ome = ome_types.from_xml(tiff.ome_metadata or "", validate=True)
        pages = len(tiff.pages)
    (image,) = ome.images
    pixels = image.pixels
    planes = [(block.first_c or 0) + i for block in pixels.tiff_data_blocks for i in range(block.plane_count or 1)]
    more = [
        ("a plane for each channel", sorted(planes) == [*range(pixels.size_c)] and pages == pixels.size_c, str(planes)),
        ("one plane per channel", (pixels.size_z, pixels.size_t) == (1, 1), ""),
        ("unit of um per pixel", pixels.physical_size_x_unit.value == pixels.physical_size_y_unit.value == "µm", ""),
    ]
    names = [channel.name or "" for channel in pixels.channels]
    colours = [channel.color.as_int32() & 0xFFFFFFFF for channel in pixels.channels]
    mpp = float(pixels.physical_size_x or 0), float(pixels.physical_size_y or 0)
    dtype = {"float": "float32"}.get(pixels.type.value, pixels.type.value)
    return Seen([(pixels.size_x, pixels.size_y)], mpp, [], dtype, names, colours, more)


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout
