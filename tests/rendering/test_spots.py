from __future__ import annotations

import gzip
import json
import uuid

import numpy as np
import pytest
from results_to_draw import draw, made_up

from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp

MPP = Mpp(0.5, 0.49)


def features(path):
    return json.loads(path.read_text())["features"]


def spots_of(layout: str) -> Spots:
    if layout == "given":
        return Spots(np.array([[100.0, 50.5], [300.25, 200.0]]), np.zeros(2, int), np.arange(2), "given", 40.0)
    return lattice(Bounds(0, 0, 600, 400), MPP, 40.0, layout)


@pytest.mark.parametrize("layout", ["square", "hex", "given"])
def test_detections_follow_the_rules_that_qupath_applies(layout, tmp_path):
    spots = spots_of(layout)
    values = np.arange(len(spots) * 2, dtype=float).reshape(-1, 2)
    values[1, 0] = np.nan
    result = made_up(tmp_path / "s.h5ad", spots, values, MPP)
    (path,) = draw(result, tmp_path, "spots", genes=())
    found = features(path)
    assert len(found) == len(spots)
    assert len({str(uuid.UUID(feature["id"])) for feature in found}) == len(spots)
    for i, feature in enumerate(found):
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring[0] == ring[-1]).all()
        np.testing.assert_allclose(ring[:-1].mean(axis=0), spots.centres[i], atol=0.01)
        assert feature["geometry"].get("isEllipse", False) == (layout == "given")
        x, y = (ring[:-1] * MPP).T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # um2
        expected = {"square": 1600, "hex": 1600 * np.sqrt(3) / 2, "given": np.pi * 625}[layout]
        assert area == pytest.approx(expected, rel=0.01)
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        measured = {name: value for name, value in (("G0", values[i, 0]), ("G1", values[i, 1])) if np.isfinite(value)}
        assert properties["measurements"] == measured
        assert "classification" not in properties  # QuPath refuses one without a colour


def test_identifiers_are_stable_and_compression_changes_nothing_else(tmp_path):
    result = made_up(tmp_path / "s.h5ad", spots_of("hex"), np.ones((len(spots_of("hex")), 1)))
    plain = draw(result, tmp_path, "spots", genes=())[0].read_bytes()
    (packed,) = draw(result, tmp_path, "spots", genes=(), compress=True, overwrite=True)
    assert packed.name == "s.spots.geojson.gz"
    assert gzip.decompress(packed.read_bytes()) == plain
    (tmp_path / "other").mkdir()
    other = made_up(tmp_path / "other" / "s.h5ad", spots_of("hex"), np.zeros((len(spots_of("hex")), 1)))
    square = made_up(tmp_path / "other" / "q.h5ad", spots_of("square"), np.zeros((len(spots_of("square")), 1)))
    ids = {feature["id"] for feature in features(draw(square, tmp_path / "other", "spots", genes=())[0])}
    assert not ids & {feature["id"] for feature in json.loads(plain)["features"]}
    again = features(draw(other, tmp_path / "other", "spots", genes=())[0])
    assert [feature["id"] for feature in again] == [feature["id"] for feature in json.loads(plain)["features"]]
