"""Other programs' readers on pictures of every kind; see validate.py, which also checks pictures by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import validate
from conftest import SLIDE
from expected import Ground, Picture, colour_table
from slides_to_try import leica_with_bounds, tiff_pyramid

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.engines.engine import EngineRequest
from stpredict.prediction.one_slide import Request
from stpredict.rendering.colour import ScaleRequest
from stpredict.rendering.render import render
from stpredict.rendering.styles import RenderRequest, Style
from stpredict.result.file import Gene, Result, read_result
from stpredict.result.writing import Content, write_result
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp, open_slide

MPP = Mpp(0.499, 0.499)
GENES = ("GNAS", "<&> µ", "=1+1")
TABLES: tuple[Style, ...] = ("spots", "csv")


def make_result(
    path: Path, spots: Spots, size: tuple[int, int], mpp: Mpp, *, bounds: Bounds | None = None,
    slide: Path = SLIDE, values: np.ndarray | None = None, genes: Sequence[str] = GENES,
) -> Result:  # fmt: skip
    """A result without a prediction; every seventh patch of it could not be read, unless `values` are given."""
    if values is None:
        values = np.random.default_rng(0).uniform(3, 7, (len(spots), len(genes))).astype(np.float32)
        values[::7] = np.nan
    with open_slide(slide) as opened:
        fingerprint = opened.fingerprint()
    provenance = {
        "model": {"name": "none", "sha256": "0"}, "settings": {}, "expression_unit": "ln(1 + CPM)",
        "slide": {
            "name": path.stem, "path": str(slide), "fingerprint": fingerprint, "dimensions": size,
            "bounds": bounds or (0, 0, *size), "mpp": mpp, "native_mpp": None, "given_mpp": None,
        },
        "lattice": {
            "layout": spots.layout, "pitch_um": spots.pitch_um, "spot_diameter_um": 100.0, "oversampled": False,
        },
        "tissue": {"tissue_fraction_of_slide": 0.5}, "unusual_patches": 0.0, "card": None,
        "display_range": [[4.0] * len(genes), [6.0] * len(genes)],
    }  # fmt: skip
    content = Content(
        path.stem, spots, {"tissue_fraction": np.full(len(spots), 0.75, np.float32)},
        [Gene(name, 0.3, 5.0) for name in genes], [values], provenance, {}, np.full((40, 30, 3), 255, np.uint8),
        max(size) / 40, 100 / mpp.x,
    )  # fmt: skip
    write_result(path, content)
    return read_result(path)


def some(spots: Spots) -> Spots:
    """Three quarters of the spots, so that tissue has edges everywhere."""
    return spots.take(np.flatnonzero(np.random.default_rng(1).random(len(spots)) < 0.75))


def on_slide(layout: str, pitch_um: float, mpp: Mpp = MPP) -> Callable[..., Result]:
    """Of part of a lattice on the example slide."""

    def make(out: Path, *_: Any) -> Result:
        size = (2220, 2967)
        return make_result(out / "s.h5ad", some(lattice(Bounds(0, 0, *size), mpp, pitch_um, layout)), size, mpp)

    return make


def given(out: Path, *_: Any) -> Result:
    """Disks, some of which overlap or reach beyond the slide."""
    centres = np.random.default_rng(2).uniform(0, (2219, 2966), (70, 2))
    spots = Spots(np.vstack([centres, [(0, 0), (2219.9, 2966.9)]]), np.zeros(72, int), np.arange(72), "given", 100.0)
    return make_result(out / "s.h5ad", spots, (2220, 2967), MPP)


def predicted_in_bounds(out: Path, model: Any, region: np.ndarray) -> Result:
    """The one that is not made up, of a slide that begins elsewhere than its scan."""
    leica_with_bounds(out / "b.scn", region[500:1700, :1407], corner=(301, 207), size=(2500, 2003))
    asked = Request(engine=EngineRequest("eager", "fp32"), genes=("GNAS", "CD74", "<&>"))
    (outcome,) = predict_slides(find_jobs([str(out / "b.scn")], out, print), model, asked, print, lambda *_: None)
    assert outcome.job.result, outcome.error
    return read_result(outcome.job.result)


def bounds_of_hexagons(out: Path, *_: Any) -> Result:
    size, bounds, mpp = (2220, 2967), Bounds(301, 207, 1407, 1203), Mpp(0.499, 0.51)
    return make_result(out / "s.h5ad", some(lattice(bounds, mpp, 83.7, "hex")), size, mpp, bounds=bounds)


def pyramid(out: Path, _: Any, region: np.ndarray) -> Result:
    """A slide of several levels, halved as the pictures are: by what a pixel of each level covers."""
    tiff_pyramid(out / "p.tif", region, (0.5, 0.5), levels=1)
    size, mpp = (2220, 2967), Mpp(0.5, 0.5)
    spots = some(lattice(Bounds(0, 0, *size), mpp, 100.0))
    return make_result(out / "s.h5ad", spots, size, mpp, slide=out / "p.tif")


def wide(out: Path, *_: Any) -> Result:
    """More pixels across than 16 bits count."""
    size, mpp = (70_001, 300), Mpp(0.5, 0.5)
    return make_result(out / "s.h5ad", some(lattice(Bounds(0, 0, *size), mpp, 97.0)), size, mpp, genes=GENES[:1])


@dataclass(frozen=True)
class Case:
    make: Callable[..., Result]
    request: dict[str, Any]
    styles: tuple[Style, ...] = ("heatmap", "channels")


CASES = {
    "squares": Case(on_slide("square", 100.0), {}, ("heatmap", "overlay", "channels", "pca", *TABLES)),
    "reduced 3.7 times": Case(
        on_slide("square", 100.0), {"downsample": 3.7}, ("heatmap", "overlay", "channels", "pca")),
    "pitch of whole pixels": Case(on_slide("square", 100.0, Mpp(0.5, 0.5)), {"opacity": 1.0}, ("heatmap", "overlay")),
    "hexagons": Case(on_slide("hex", 103.1), {"compress": True}, ("heatmap", "overlay", "channels", "pca", *TABLES)),
    "pixels of unequal sides": Case(on_slide("square", 61.3, Mpp(0.5, 0.43)), {}, ("heatmap", "channels", *TABLES)),
    "bounds on the slide": Case(predicted_in_bounds, {}, ("heatmap", "overlay", *TABLES)),
    "bounds alone": Case(predicted_in_bounds, {"origin": "bounds"}, ("heatmap", "overlay", "channels", *TABLES)),
    "bounds of hexagons, reduced": Case(
        bounds_of_hexagons, {"origin": "bounds", "downsample": 2.5}, ("heatmap", "overlay", "channels", *TABLES)),
    "given spots": Case(given, {}, ("heatmap", "overlay", "channels", *TABLES)),
    "given spots, reduced": Case(given, {"downsample": 3.7}),
    "smooth squares": Case(on_slide("square", 100.0), {"smooth": True}, ("heatmap",)),
    "smooth hexagons": Case(on_slide("hex", 103.1), {"smooth": True, "downsample": 2.0}, ("heatmap",)),
    "reduced slide": Case(pyramid, {"downsample": 4.0}, ("overlay",)),
    "wide": Case(wide, {}),
    "another colour map": Case(
        on_slide("square", 200.0), {"scale": ScaleRequest("slide", colour_map="batlow")}, ("heatmap",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures_of(tiny_model, region, tmp_path_factory):
    """Makes the pictures of a case, once."""
    made: dict[str, list[Any]] = {}
    results: dict[Callable[..., Result], Result] = {}

    def make(name: str) -> list[Any]:
        if name not in made:
            case, out = CASES[name], tmp_path_factory.mktemp("case")
            if case.make not in results:
                results[case.make] = case.make(out, tiny_model, region)
            result = results[case.make]
            ground = Ground(result)
            check = validate.check_lattice(ground)
            assert check.passed or result.spots.layout == "given", check
            paths = []
            for style in case.styles:
                genes = [result.genes[0].name] if style in ("heatmap", "overlay") else []
                paths += render(result, RenderRequest(genes=genes, styles=(style,), **case.request), out)
            made[name] = [Picture(ground, path) for path in paths if path.suffix != ".png"]
        return made[name]

    return make


FITTING = [
    (reader, case)
    for reader, (styles, _) in validate.READERS.items()
    for case in CASES
    if {"expression" if style == "csv" else style for style in CASES[case].styles} & set(styles)
]


@pytest.mark.parametrize(("reader", "case"), FITTING)
def test_readers_see_the_right_pixels_at_the_right_places(pictures_of, reader, case):
    if validate.why_absent(reader):
        pytest.skip(f"{reader}: {validate.why_absent(reader)}")
    checks = list(validate.look(pictures_of(case), reader))
    assert checks
    assert not [str(check) for check in checks if not check.passed]


def draw_one(result: Result, out: Path, style: Style, **request: Any) -> Path:
    return next(iter(render(result, RenderRequest(styles=(style,), **request), out)))


def edges_along(line: np.ndarray, inside: int) -> tuple[int, int]:
    """Where the run of like values around a pixel begins and ends."""
    changes = np.flatnonzero((line[1:] != line[:-1]).reshape(len(line) - 1, -1).any(axis=1)) + 1
    return int(max(changes[changes <= inside], default=0)), int(min(changes[changes > inside], default=len(line)))


@pytest.mark.parametrize(("layout", "pitch_um"), [("square", 77.3), ("hex", 67.3)])
@pytest.mark.parametrize("style", ["heatmap", "overlay", "channels"])
def test_each_block_lies_around_its_spot_to_half_a_pixel(tmp_path, layout, pitch_um, style):
    """Neighbours differ in value, so that decoded pictures show where each block ends; the last go to the slide's edge.

    Nothing but the spots' centres is used: no cell is worked out.
    """
    size, mpp = (2220, 2967), Mpp(0.499, 0.47)
    spots = lattice(Bounds(0, 0, *size), mpp, pitch_um, layout)
    values = np.column_stack([(spots.row % 2) * 2 + spots.column % 2, spots.row + 1, spots.column + 1])
    result = make_result(tmp_path / "s.h5ad", spots, size, mpp, values=values.astype(np.float32))
    scale = ScaleRequest(low=0, high=3)
    genes = [GENES[0]] if style != "channels" else []
    picture = draw_one(result, tmp_path, style, genes=genes, opacity=1.0, scale=scale)
    if style == "channels":
        shown = np.moveaxis(tifffile.imread(picture), 0, -1)
        x, y = spots.centres.astype(int).T
        np.testing.assert_array_equal(shown[y, x], values)
    else:
        with openslide.OpenSlide(picture) as slide:
            shown = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(np.int16)
    if style == "overlay":  # JPEG: back to the colour that is nearest
        palette = colour_table("viridis")[[0, 85, 170, 255]].astype(np.int16)
        shown = np.stack([np.abs(shown - colour).sum(axis=-1) for colour in palette]).argmin(axis=0)
    half = pitch_um / 2 / np.array(mpp)
    for centre in spots.centres:
        x, y = centre.astype(int)
        found = edges_along(shown[y], x)
        if layout == "square":
            found += edges_along(shown[:, x], y)
        for axis, (start, end) in enumerate(zip(found[::2], found[1::2], strict=True)):
            middle, reach = centre[axis], half[axis]
            # where there is no neighbour, a block goes on
            assert abs(start - (middle - reach)) <= 0.5 + 1e-9 or middle - 2 * reach < 1
            assert abs(end - (middle + reach)) <= 0.5 + 1e-9 or middle + 2 * reach >= size[axis]


def test_a_picture_that_is_wrong_is_found(pictures_of, tmp_path):
    """A validator that never complains proves nothing: one spot's colour in a corner of a tile is enough."""
    (right, *_) = pictures_of("pitch of whole pixels")
    assert right.style == "heatmap"
    with tifffile.TiffFile(right.path) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    levels[1][0, 256:] = 0
    levels[3] = np.roll(levels[3], 1, axis=1)
    path = tmp_path / right.path.name
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, pixels in enumerate(levels):
            tiff.write(
                pixels, tile=(256, 256), compression="deflate", photometric="rgb", metadata=None,
                subfiletype=min(level, 1), resolution=(20_000 / 2**level, 20_200 / 2**level),
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    path.with_suffix(".json").write_text(right.path.with_suffix(".json").read_text())
    checks = validate.look([Picture(right.ground, path)], "OpenSlide")
    assert [check.what for check in checks if not check.passed] == [
        "um per pixel", "pixels of level 1", "pixels of level 3"]  # fmt: skip
