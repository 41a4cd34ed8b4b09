"""Flags of spots: what they find, what a result says of them, and who shows them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from calls import run
from conftest import SLIDE
from results_to_draw import draw, made_up, predict
from scipy import ndimage
from skimage.color import hed_from_rgb
from slides_to_try import tiff_pyramid

from stpredict.errors import ResultError
from stpredict.model.file import load_model
from stpredict.model.reference import (
    SHRINKAGE,
    UNUSUAL_QUANTILE,
    colour_features,
    colour_planes,
    make_reference,
    optical_density,
    reference_of,
    unusual,
)
from stpredict.prediction.quality import flag_spots, judge_spots, measure_patches, typical_density
from stpredict.rendering.account import facts
from stpredict.result.file import FLAGS, read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Bounds, Mpp, open_slide
from stpredict.statistics.colour_texture import HED_FROM_RGB, patch_features

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 40.0)
MADE_UP = {
    "unusual": np.linspace(0, 2, len(SPOTS), dtype=np.float32),
    **{flag: np.arange(len(SPOTS)) % n == 0 for n, flag in enumerate(FLAGS, start=2)},
}


@pytest.fixture(scope="module")
def patches(region):
    """Patches of the example slide's tissue."""
    return np.stack([region[y : y + 224, x : x + 224] for y in range(600, 2700, 150) for x in range(850, 1400, 150)])


@pytest.fixture(scope="module")
def reference(model_with_reference_path):
    return reference_of(load_model(model_with_reference_path))


def test_colours_are_those_of_the_reference_features(patches):
    np.testing.assert_array_equal(HED_FROM_RGB.astype(np.float32), hed_from_rgb.astype(np.float32))
    pixels = np.moveaxis(patches[:5], 3, 1).reshape(5, 3, -1)
    found = colour_features(np.sort(colour_planes(pixels, optical_density(pixels)), axis=2))
    np.testing.assert_allclose(found, [patch_features(patch)[:36] for patch in patches[:5]], rtol=1e-3, atol=1e-5)


def test_the_bound_leaves_each_part_of_the_training_patches_out_of_its_own_estimate():
    known, part = np.random.default_rng(0).normal(5, 2, (40, 6)), np.arange(40) % 3
    new = np.random.default_rng(1).normal(6, 3, (9, 6))

    def distance(x, others):
        away = (x - others.mean(axis=0)) / others.std(axis=0)
        scaled = (others - others.mean(axis=0)) / others.std(axis=0)
        return np.sqrt(away @ np.linalg.inv(np.cov(scaled, rowvar=False) + SHRINKAGE * np.eye(6)) @ away)

    bound = np.quantile([distance(x, known[part != own]) for x, own in zip(known, part, strict=True)], UNUSUAL_QUANTILE)
    expected = [distance(x, known) / bound for x in new]
    np.testing.assert_allclose(unusual(new, make_reference(known, part)), expected)


def test_a_reference_that_says_nothing_is_none(tiny_model, model_with_reference_path):
    model = load_model(model_with_reference_path)
    assert reference_of(tiny_model) is None
    features = model.tensors["reference_features"]
    for useless in (features[:2], np.full_like(features, np.nan)):
        model.tensors["reference_features"] = useless
        assert reference_of(model) is None
    model.tensors["reference_features"] = np.ones_like(features)  # without any spread
    assert np.isfinite(measure_patches(np.full((1, 224, 224, 3), 7, np.uint8), reference_of(model))).all()
    model.tensors["reference_part"] = np.zeros(len(features), np.int64)  # which would leave nothing
    assert np.isfinite(measure_patches(np.full((1, 224, 224, 3), 7, np.uint8), reference_of(model))).all()


def test_a_patch_has_the_same_measures_alone_and_among_others(patches, reference):
    together = measure_patches(patches, reference)
    np.testing.assert_array_equal(together, [measure_patches(patch[None], reference)[0] for patch in patches])
    np.testing.assert_array_equal(together[3:20], measure_patches(patches[3:20], reference))
    assert np.isfinite(together).all()
    assert np.isnan(measure_patches(patches[:1], None)[0, 0])


def share_flagged(changed, patches):
    flags = flag_spots(measure_patches(changed, None), typical_density(measure_patches(patches, None)))
    return {name: flag.mean() for name, flag in flags.items()}


def test_untouched_tissue_is_hardly_ever_flagged(patches):
    assert max(share_flagged(patches, patches).values()) <= 0.04  # of 56, two


@pytest.mark.parametrize(
    ("flag", "change", "at_least"),
    [
        ("blurred", lambda p: np.stack([ndimage.gaussian_filter(each, (2, 2, 0)) for each in p]), 0.99),
        ("pen", lambda p: (p * (0.15, 0.3, 0.75)).astype(np.uint8), 0.9),
        ("pen", lambda p: (p * (0.15, 0.6, 0.35)).astype(np.uint8), 0.95),
        ("pen", lambda p: (p * (0.1, 0.1, 0.12)).astype(np.uint8), 0.95),
        ("fold", lambda p: (255 * (p / 255) ** 3).astype(np.uint8), 0.6),
        ("pale", lambda p: (255 * (p / 255) ** 0.15).astype(np.uint8), 0.95),
    ],
)
def test_artefacts_are_flagged(patches, flag, change, at_least):
    assert share_flagged(change(patches), patches)[flag] >= at_least


def test_glass_is_pale_and_nothing_else(patches):
    glass = np.random.default_rng(0).integers(240, 246, (4, 224, 224, 3)).astype(np.uint8)
    for blank in (glass, np.full_like(glass, 255)):
        assert share_flagged(blank, patches) == {"blurred": 0, "pen": 0, "fold": 0, "pale": 1}
        assert judge_spots(measure_patches(blank, None)).counts["fold"] == 0  # nothing to compare with


@pytest.fixture(scope="module")
def damaged_slide(tmp_path_factory, region):
    """The example slide, its upper part out of focus, with green ink on its lower part."""
    pixels = region.copy()
    pixels[:1000] = ndimage.gaussian_filter(pixels[:1000], (5, 5, 0))
    pixels[2000:] = (pixels[2000:] * (0.15, 0.6, 0.35)).astype(np.uint8)
    path = tmp_path_factory.mktemp("slides") / "damaged.tif"
    tiff_pyramid(path, pixels, (0.499, 0.499))
    return path


@pytest.fixture(scope="module")
def predicted(damaged_slide, model_with_reference_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    done = run(
        "predict", damaged_slide, "-m", model_with_reference_path, "--engine", "eager", "--genes", "GNAS", "-o", out
    )
    assert done.exit_code == 0, done.output
    return out / "damaged.h5ad", done.stderr


def test_every_spot_is_kept_and_judged(predicted, damaged_slide, reference):
    path, _ = predicted
    obs = anndata.read_h5ad(path).obs
    y = read_result(path).spots.centres[:, 1]
    assert {name: obs[name].dtype.name for name in ("unusual", *FLAGS)} == {"unusual": "float32"} | dict.fromkeys(
        FLAGS, "bool"
    )
    middle = (y > 1200) & (y < 1800)
    assert obs["blurred"][y < 800].mean() > 0.9
    assert not obs["blurred"][middle].any()
    assert obs["pen"][y > 2200].all()
    assert not obs["pen"][y < 1800].any()
    assert (obs["unusual"][y > 2200] > 1).all()
    assert (obs["unusual"][middle] < 1).mean() > 0.5
    with open_slide(damaged_slide) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        patches = np.empty((len(obs), 224, 224, 3), np.uint8)
        for index, block in read_patches(raster, read_result(path).spots.centres, 224):
            patches[index] = block
    np.testing.assert_array_equal(obs["unusual"], measure_patches(patches, reference)[:, 0])


def test_the_result_and_the_terminal_say_how_many(predicted):
    path, stderr = predicted
    result = read_result(path)
    account = result.provenance["quality"]
    counts = {name: int(spots.sum()) for name, spots in result.flagged().items()}
    assert account["spots"] == counts
    assert account["thresholds"]["sharpness_below"] < 1
    assert result.provenance["unusual_patches"] == pytest.approx(counts["unusual"] / len(result.spots), abs=1e-3)
    assert f"of {len(result.spots)} spots " in stderr
    assert f"{counts['blurred']} are blurred" in stderr
    assert f"{counts['pen']} have pen on them" in stderr
    assert "pale" not in stderr


def test_a_model_without_a_reference_does_not_say_what_is_unusual(tiny_model, tmp_path):
    result = predict(tiny_model, tmp_path, SLIDE, genes=("GNAS",), pitch_um=200.0)
    assert list(result.quality) == list(FLAGS)
    assert result.provenance["unusual_patches"] == 0
    assert "unusual" not in result.provenance["quality"]["spots"]


def test_summary_counts_flagged_spots_of_slides_and_regions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_up(Path("new.h5ad"), SPOTS, np.ones((len(SPOTS), 1)), quality=MADE_UP)
    corner = [[0, 0], [190, 0], [190, 190], [0, 190], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [corner]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"name": "corner"}}
    Path("new.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    whole, part = csv.DictReader(io.StringIO(run("summary", "new.h5ad", "--regions", "new.geojson").stdout))
    inside = (SPOTS.centres < 190).all(axis=1)
    for name, values in MADE_UP.items():
        flag = values > 1 if name == "unusual" else values
        assert (int(whole[name]), int(part[name])) == (flag.sum(), flag[inside].sum())


def test_table_and_detections_hold_the_flags(tmp_path):
    result = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1)), quality=MADE_UP)
    table, detections = draw(result, tmp_path, "csv", "spots", genes=())
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    features = json.loads(detections.read_text())["features"]
    for i, (row, feature) in enumerate(zip(rows, features, strict=True)):
        expected = {name: pytest.approx(float(values[i]), abs=1e-3) for name, values in MADE_UP.items()}
        assert {name: float(row[name]) for name in MADE_UP} == expected
        assert feature["properties"]["measurements"] == {"G0": 1.0, **expected}


def test_the_page_warns_of_flags_that_many_spots_have(tmp_path):
    few = {"blurred": np.arange(len(SPOTS)) < 1, "pale": np.arange(len(SPOTS)) < len(SPOTS) // 2}
    result = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1)), quality=few)
    result.provenance["slide"] |= {"native_mpp": None, "given_mpp": None}
    assert (f"Of the spots {len(SPOTS) // 2} are pale", True) in facts(result, [0])


def test_results_that_do_not_know_flags_are_read_and_summed_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    older = made_up(Path("older.h5ad"), SPOTS, np.ones((len(SPOTS), 1)))
    assert older.flagged() == {}
    (row,) = csv.DictReader(io.StringIO(run("summary", "older.h5ad").stdout))
    assert [row[name] for name in MADE_UP] == [""] * len(MADE_UP)
    (table,) = draw(older, tmp_path, "csv", genes=())
    assert "blurred" not in table.read_text(encoding="utf-8-sig").splitlines()[0]


@pytest.mark.parametrize("values", [np.array([b"x"] * len(SPOTS)), np.zeros(len(SPOTS) + 1, np.bool_), "link"])
def test_flags_that_cannot_be_are_one_sentence(tmp_path, values):
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1)), quality=MADE_UP).path
    with h5py.File(path, "r+") as file:
        del file["obs/pen"]
        file["obs/pen"] = h5py.ExternalLink(str(path), "obs/fold") if isinstance(values, str) else values
    with pytest.raises(ResultError, match=r"s\.h5ad: "):
        read_result(path)
