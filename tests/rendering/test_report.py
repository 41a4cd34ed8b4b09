from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from conftest import SLIDE
from pages_to_open import FOLD, HOSTILE, SIZE, report_of
from PIL import Image

from stpredict.errors import ResultError
from stpredict.rendering import report
from stpredict.rendering.account import describe_card, facts


def content(path):
    """What a page holds, read as a browser reads it: up to the first end of the script element."""
    return json.loads(path.read_text().split('<script type="application/json" id="data">')[1].split("</script")[0])


def decoded(values):
    return np.frombuffer(base64.b64decode(values["data"]), np.dtype(values["type"]).newbyteorder("<"))


def test_nothing_is_referred_to_but_the_page_itself(page):
    references = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            references.extend(value for name, value in attributes if name in ("src", "href", "data", "action"))
            assert tag not in ("iframe", "object", "embed", "base", "img")

    text = page.read_text()
    Parser().feed(text)
    assert references == ["data:,"]
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "sourceMappingURL" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_names_from_files_stay_inside_the_data(hostile):
    text = hostile.read_text()
    assert "window.hacked" in text
    for name in HOSTILE:
        assert name not in text
    assert text.count("<script") == 3 + report._part("openseadragon.min.js").count("<script")
    data = content(hostile)
    assert [gene["name"] for gene in data["genes"]] == HOSTILE
    assert data["name"] == HOSTILE[0]


def test_values_and_places_read_back(result, page):
    data = content(page)
    for gene in data["genes"]:
        values, codes = result.expression(gene["name"]), decoded(gene["values"])
        low, step = gene["values"]["low"], gene["values"]["step"]
        np.testing.assert_allclose(low + codes * step, values, rtol=0, atol=np.ptp(values) / 65_000)
    np.testing.assert_array_equal(decoded(data["spots"]["row"]), result.spots.row)
    np.testing.assert_array_equal(decoded(data["spots"]["column"]), result.spots.column)
    np.testing.assert_allclose(decoded(data["spots"]["tissue"]) / 255, result.tissue_fraction, atol=0.002)
    assert [(gene["held_out"], gene["poor"]) for gene in data["genes"]] == [(0.3, False), (0.2, False), (0.01, True)]
    assert data["genes"][2]["reliability"] == "not predicted when tested"
    assert str(SLIDE.parent) not in page.read_text()


def test_values_that_are_missing_or_all_alike():
    nothing = report._quantised(np.full(3, np.nan, np.float32))
    assert (decoded(nothing) == 65_535).all()
    alike = report._quantised(np.array([2.5, np.nan, 2.5], np.float32))
    np.testing.assert_array_equal(decoded(alike), [0, 65_535, 0])
    assert alike["low"] == 2.5


def test_the_same_page_every_time(result, page, tmp_path):
    assert report_of(result, tmp_path / "again.html").read_bytes() == page.read_bytes()


def tiles(path):
    """The image of each level, coarsest first, put together from its tiles."""
    image = content(path)["image"]
    step = image["tile_px"]
    for i, level in enumerate(image["levels"]):
        shrink = 2 ** (len(image["levels"]) - 1 - i)
        width, height = (int(np.ceil(image[side] / shrink)) for side in ("width", "height"))
        whole = Image.new("RGB", (width, height))
        columns = int(np.ceil(width / step))
        for j, tile in enumerate(level):
            with Image.open(io.BytesIO(base64.b64decode(tile))) as jpeg:
                assert not jpeg.getexif()
                assert max(jpeg.size) <= 512
                whole.paste(jpeg, (max(j % columns * step - 1, 0), max(j // columns * step - 1, 0)))
        yield np.asarray(whole).astype(float)


def test_the_slide_is_in_it_level_by_level(page, region):
    *coarse, finest = tiles(page)
    assert finest.shape == region.shape
    assert abs(finest - region).mean() < 5
    assert len(coarse) == 3
    assert max(coarse[0].shape) <= 510


def test_the_slide_is_reduced_until_it_fits(result, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_IMAGE_BYTES", 200_000)
    image = content(report_of(result, tmp_path / "small.html"))["image"]
    assert 300 < image["height"] < 1500
    assert sum(len(tile) for level in image["levels"] for tile in level) * 3 / 4 <= 200_000
    assert image["width"] / image["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.01)


def test_what_is_doubtful_is_a_warning(result):
    warnings = [text for text, warning in facts(result, [0, 2]) if warning]
    assert "1 of 2 genes shown: not predicted when the model was tested" in warnings
    slide = result.provenance["slide"] | {"given_mpp": 0.6, "native_mpp": None}
    spots = dataclasses.replace(result.spots, pitch_um=50.0)
    provenance = result.provenance | {"slide": slide, "unusual_patches": 0.8}
    told = list(facts(dataclasses.replace(result, provenance=provenance, spots=spots), [0]))
    warnings = " / ".join(text for text, warning in told if warning)
    for words in ("80% of patches", "given by hand; the slide file says nothing", "neighbours share tissue"):
        assert words in warnings
    assert any(text.startswith("Tissue on 4") for text, _ in told)


def test_the_card_says_which_baselines_win():
    assert describe_card(None) is None
    card = describe_card({"architecture": "m2ort-small", "training": None, "held_out": [FOLD, {"kind": "patient"}]})
    (fold,) = card["folds"]
    assert fold["rows"][-1] == ["model", "0.033", "0.033", "–", "–"]
    assert "Not beaten here: ridge on colour and texture." in fold["notes"][1]
    assert "0.375" in fold["notes"][0]


@pytest.mark.parametrize("card", [[], {"held_out": ["B"]}, {"held_out": [{"rows": {"model": {}}}]}, {"mpp": "0.5"}])
def test_a_damaged_card_is_one_clear_error(result, tmp_path, card):
    damaged = dataclasses.replace(result, provenance=result.provenance | {"card": card or "text"})
    with pytest.raises(ResultError, match="model card"):
        report_of(damaged, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
