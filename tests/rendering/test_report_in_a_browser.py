from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pytest
from pages_to_open import HOSTILE, SIZE, UNIT, report_of, scale
from PIL import Image
from results_to_draw import made_up

from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.slide import Bounds, Mpp


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page from disk; at the end nothing may have been complained of or asked from elsewhere."""
    complaints, tabs = [], []

    def visit(path, width=1280, height=800):
        tab = browser.new_page(viewport={"width": width, "height": height})
        tabs.append(tab)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda it: complaints.append(it.url) if it.url[:5] not in ("file:", "data:", "blob:") else 0)
        tab.goto(path.as_uri())
        settle(tab)
        return tab

    yield visit
    for tab in tabs:
        tab.close()
    assert not complaints


def settle(tab):
    """Wait until the slide is drawn; the page's policy forbids Playwright's own way of waiting."""
    for _ in range(200):
        tab.wait_for_timeout(50)
        if tab.evaluate("viewer.world.getItemCount() > 0 && viewer.world.getItemAt(0).getFullyLoaded()"):
            break
    tab.wait_for_timeout(150)


def pixels(tab):
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB")).astype(int)


def fade(tab, percent):
    tab.locator("#opacity").fill(str(percent))


def on_screen(tab, x, y):
    """Where a level-0 position of the slide is on the screen, according to the viewer."""
    place = "new OpenSeadragon.Point(x / width * image.width, y / height * image.height)"
    point = tab.evaluate(
        f"([x, y, width, height]) => viewer.viewport.imageToViewerElementCoordinates({place})", [x, y, *SIZE]
    )
    box = tab.locator("#viewer").bounding_box()
    return box["x"] + point["x"], box["y"] + point["y"]


def test_it_opens_from_disk_and_shows_the_slide_and_a_map(opened, page):
    tab = opened(page)
    assert tab.title() == "CMU-1-Small-Region – predicted gene expression"
    assert "Research use only" in tab.locator("header").inner_text()
    assert tab.locator("#genes label").count() == 4
    assert "not predicted when tested" in tab.locator("#genes label", has_text="DDX5").inner_text()
    assert UNIT in tab.locator("#scale-title").inner_text()
    assert tab.locator("#histogram rect").count() == 40
    first = pixels(tab)
    tab.get_by_role("radio", name="DDX5").check()
    other = pixels(tab)
    assert (abs(first - other)[150:650, 250:700].max(axis=-1) > 20).mean() > 0.1
    tab.get_by_role("radio", name="none").check()
    bare = pixels(tab)
    assert not tab.locator("#scale").is_visible()
    tab.get_by_role("radio", name="GNAS").check()
    assert (pixels(tab)[150:650, 100:900] == first[150:650, 100:900]).all()
    fade(tab, 0)
    assert (pixels(tab)[150:650, 100:900] == bare[150:650, 100:900]).all()
    assert tab.locator("#opacity-text").inner_text() == "0%"
    fade(tab, 25)
    weaker, stronger = (abs(shot - bare)[150:650, 250:700].mean() for shot in (pixels(tab), first))
    assert weaker == pytest.approx(stronger / 2, rel=0.1)


def hole_in(spots):
    """The spots without those around the middle of the slide, so that the map has an edge there."""
    x, y = spots.centres.T
    return spots.take(np.flatnonzero((abs(x - 1100) > 320) | (abs(y - 1480) > 320)))


def spots_to_place(layout, bounds, mpp):
    if layout != "given":
        return hole_in(lattice(bounds, mpp, 73.0, layout))
    centres = np.random.default_rng(0).uniform((100, 100), (2100, 2850), (60, 2))
    centres = centres[(abs(centres - (1100, 1480)).max(axis=1)) > 320]
    return Spots(centres, np.zeros(len(centres), int), np.arange(len(centres)), "given", 50.0)


@pytest.mark.parametrize("zoom", [1, 2.5])
@pytest.mark.parametrize(
    ("layout", "bounds", "mpp"),
    [
        ("square", Bounds(0, 0, *SIZE), Mpp(0.499, 0.499)),
        ("square", Bounds(310, 200, 1700, 2500), Mpp(0.495, 0.503)),
        ("hex", Bounds(0, 0, *SIZE), Mpp(0.499, 0.499)),
        ("hex", Bounds(310, 200, 1700, 2500), Mpp(0.495, 0.503)),
        ("given", Bounds(0, 0, *SIZE), Mpp(0.499, 0.499)),
    ],
)
def test_the_map_lies_where_the_spots_lie(opened, tmp_path, layout, bounds, mpp, zoom):
    """Each point of the screen has the colour of the spot whose centre is nearest, or the slide's own."""
    spots = spots_to_place(layout, bounds, mpp)
    values = np.arange(len(spots)) * 0.618 % 1 * 2 + 4
    result = made_up(tmp_path / "s.h5ad", spots, values[:, None], mpp, SIZE, bounds, ["G"])
    tab = opened(report_of(result, tmp_path / "s.html"))
    tab.evaluate("zoom => viewer.viewport.zoomTo(zoom * viewer.viewport.getHomeZoom(), null, true)", zoom)
    settle(tab)
    fade(tab, 100)
    mapped = pixels(tab)
    tab.get_by_role("radio", name="none").check()
    bare = pixels(tab)

    (x0, y0), (x1, y1) = on_screen(tab, 0, 0), on_screen(tab, *SIZE)
    y, x = np.mgrid[130:640:3, 80:640:3]  # clear of buttons, scale bar and read-out
    x, y = x.ravel(), y.ravel()
    places = np.column_stack([(x + 0.5 - x0) / (x1 - x0) * SIZE[0], (y + 0.5 - y0) / (y1 - y0) * SIZE[1]])
    whole = spots if layout == "given" else lattice(bounds, mpp, 73.0, layout)
    distance = np.linalg.norm((places[:, None] - whole.centres) * mpp, axis=-1)
    near = np.sort(distance, axis=1)
    pixel_um = (x1 - x0) ** -1 * SIZE[0] * mpp.x
    inside = ((places > bounds[:2]) & (places < np.add(bounds[:2], bounds[2:]))).all(axis=1)
    edge = abs(places[:, None] - [bounds[:2], np.add(bounds[:2], bounds[2:])]).min(axis=(1, 2)) * min(mpp)
    sure = (near[:, 1] - near[:, 0] > 3 * pixel_um) & (edge > 1.5 * pixel_um)  # off borders between cells
    if layout == "given":
        inside &= near[:, 0] < 25
        sure = (near[:, 1] - near[:, 0] > 3 * pixel_um) & (abs(near[:, 0] - 25) > 1.5 * pixel_um)
    has_spot = {tuple(centre): i for i, centre in enumerate(spots.centres)}
    spot = np.array([has_spot.get(tuple(whole.centres[i]), -1) for i in distance.argmin(axis=1)])
    drawn = inside & (spot >= 0)
    expected = np.where(drawn[:, None], scale("G").colours(values.astype(np.float32)[:, None])[spot], bare[y, x])
    wrong = (abs(mapped[y, x] - expected).max(axis=-1) > 6) & sure  # a step of the colour table
    assert (drawn & sure).sum() > 300
    assert (~drawn & sure).sum() > 300
    assert not wrong.any(), f"{wrong.sum()} of {sure.sum()}"


def test_a_spot_is_read_out(opened, result, page):
    tab = opened(page)
    spot = 30
    tab.mouse.move(*on_screen(tab, *result.spots.centres[spot]))
    text = tab.locator("#readout").inner_text()
    row, column = result.spots.row[spot], result.spots.column[spot]
    assert f"CMU-1-Small-Region:r{row}c{column}" in text
    for gene in ("GNAS", "<&>", "DDX5"):
        assert re.search(rf"{gene}\s+{result.expression(gene)[spot]:.3f}", text)
    x, y = result.spots.centres[spot]
    assert f"{x * 0.499:.0f}, {y * 0.499:.0f} µm ({x:.1f}, {y:.1f} px)" in text
    assert f"tissue {result.tissue_fraction[spot]:.0%}" in text
    tab.mouse.move(1200, 30)
    assert "Point at a spot" in tab.locator("#readout").inner_text()


def test_everything_works_from_the_keyboard(opened, page):
    tab = opened(page)
    tab.get_by_role("radio", name="GNAS").focus()
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#scale-title").inner_text().startswith("<&>")
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#opacity-text").inner_text() == "45%"
    tab.evaluate("viewer.canvas.focus()")
    for key in ("r", "f", "+"):
        tab.keyboard.press(key)
    tab.wait_for_timeout(1000)
    assert tab.evaluate("[viewer.viewport.getRotation(), viewer.viewport.getFlip()]") == [0, False]
    assert tab.evaluate("viewer.viewport.getZoom() > viewer.viewport.getHomeZoom()")
    assert "CMU-1-Small-Region:r" in tab.locator("#readout").inner_text()
    controls = "[...document.querySelectorAll('button, input')]"
    unnamed = tab.evaluate(f"{controls}.filter(it => !it.ariaLabel && !it.labels?.length).length")
    assert not unnamed


def test_it_fits_a_phone(opened, page, hostile):
    for path in (page, hostile):
        tab = opened(path, 360, 740)
        for summary in tab.locator("summary").all():
            summary.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.locator("#viewer").bounding_box()["height"] > 300


def test_hostile_names_are_only_text(opened, hostile):
    tab = opened(hostile)
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("h1").inner_text() == HOSTILE[0]
    assert tab.locator("#genes .name").all_text_contents()[:3] == HOSTILE
    assert "never tested" in tab.locator("#genes label").nth(2).inner_text()
    assert tab.locator("img").count() == 0
