from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from lxml import html
from test_assessment import made_up

from stpredict.data.counts import in_memory
from stpredict.evaluation.html import summary, write_page
from stpredict.evaluation.scores import score_all

NASTY = "</style><script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def assessment():
    tiles, knows, features = made_up(3, truth=True)
    tiles = replace(tiles, section=np.where(tiles.section == "P1s", NASTY, tiles.section.astype(object)))
    knows = replace(knows, panel=[NASTY, *knows.panel[1:]])
    tiles = replace(tiles, genes=[NASTY, *tiles.genes[1:]])
    return score_all(f"model on {NASTY}", [f"LEAK: {NASTY}"], tiles, knows, knows.index, features)


@pytest.fixture(scope="module")
def page(assessment, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "t.evaluation.html"
    write_page(path, assessment)
    return path


def test_names_are_escaped_and_nothing_is_loaded(page, assessment):
    text = page.read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!data:)\S*/", text)
    tree = html.fromstring(text)
    assert tree.findtext(".//h1") == f"model on {NASTY}"
    assert NASTY in tree.get_element_by_id("warnings").text_content()
    headings = [node.text for node in tree.findall(".//h3")]
    assert headings == [one.gene for one in assessment.maps]
    assert NASTY in [row.findtext("th") for row in tree.get_element_by_id("sections").findall(".//tbody/tr")]


def test_each_map_has_a_dot_for_each_spot(page, assessment):
    tree = html.fromstring(page.read_text())
    maps = tree.xpath("//figure[@class='map']/svg")
    assert len(maps) == 2 * len(assessment.maps)
    for drawn in maps:
        assert sum(path.get("d").count("M") for path in drawn.findall("path")) == 60


def test_the_page_says_what_the_tables_say(page, assessment):
    text = html.fromstring(page.read_text()).text_content()
    for row in assessment.rows.values():
        assert f"{row['log_cpm_rmse']:.3f}" in text if row["log_cpm_rmse"] else True
    for sentence in summary(assessment):
        assert sentence in text
    assert "more than the best" in summary(assessment)[1]


def test_a_model_that_predicts_nothing_still_gets_a_page(tmp_path):
    tiles, knows, features = made_up(1, truth=True)
    nothing = replace(knows, expression=np.zeros_like(knows.expression))
    found = score_all("t", [], tiles, nothing, nothing.index, features)
    write_page(tmp_path / "t.html", found)
    assert summary(found)[1] == "That is no better than chance."
    assert "no more than the best" in summary(found)[2]
    never = replace(tiles, counts=in_memory(tiles.counts.rows() * np.r_[np.zeros(12), 1]))
    found = score_all("t", [], never, nothing, nothing.index, features)
    write_page(tmp_path / "never.html", found)
    assert "nothing can be said" in (tmp_path / "never.html").read_text()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen_and_any_room(page, width, scheme):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")
        assert not complaints
        browser.close()
