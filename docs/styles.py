"""Draw styles.jpg, report.jpg and gnas.jpg: what each style of `stpredict render` makes of the example slide.

Usage: python docs/styles.py    (needs the extra [test], and Chromium for the page)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
SLIDE = DOCS.parent / "tests" / "data" / "CMU-1-Small-Region.svs"
CROP = np.s_[200:2000, 300:2100]
SIDE = 400
COMMANDS = (
    f"stpredict predict {SLIDE} --pitch 50 -o .",
    "stpredict render {result} --genes GNAS,DDX5,ERBB2 --style heatmap,overlay --scale slide -o .",
    "stpredict render {result} --genes GNAS,DDX5,ERBB2 --style channels,spots,report --scale slide -o .",
    "stpredict render {result} --style pca -o .",
    "stpredict render {result} --genes GNAS --style heatmap --scale slide --smooth -o smooth",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            arguments = command.format(result="CMU-1-Small-Region.h5ad").split()
            subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        stem = Path(folder) / "CMU-1-Small-Region"
        pictures = {
            "--style heatmap": tifffile.imread(f"{stem}.GNAS.heatmap.tif"),
            "--style heatmap --smooth": tifffile.imread(Path(folder) / "smooth" / f"{stem.name}.GNAS.heatmap.tif"),
            "--style overlay": tifffile.imread(f"{stem}.GNAS.overlay.tif"),
            "--style channels": additive(tifffile.imread(f"{stem}.channels.ome.tif")),
            "--style spots": outlines(Path(f"{stem}.spots.geojson"), tifffile.imread(SLIDE)),
            "--style pca": tifffile.imread(f"{stem}.pca.tif"),
        }
        sheet(pictures).save(DOCS / "styles.jpg", quality=85)
        Image.open(f"{stem}.GNAS.overlay.png").convert("RGB").save(DOCS / "gnas.jpg", quality=80)
        screenshot(Path(f"{stem}.report.html")).save(DOCS / "report.jpg", quality=85)


def additive(channels: np.ndarray) -> np.ndarray:
    """Three channels as red, green and blue light, each from its lowest value on tissue to its highest."""
    tissue = channels[0] > 0
    low, high = (np.array([function(plane[tissue]) for plane in channels]) for function in (np.min, np.max))
    light = np.where(tissue, (channels - low[:, None, None]) / (high - low)[:, None, None], 0)
    return (light.transpose(1, 2, 0) * 255).astype(np.uint8)


def outlines(path: Path, slide: np.ndarray) -> np.ndarray:
    image = Image.fromarray(slide)
    draw = ImageDraw.Draw(image)
    for feature in json.loads(path.read_text())["features"]:
        draw.line([tuple(point) for point in feature["geometry"]["coordinates"][0]], "#d00000", 6)
    return np.asarray(image)


def sheet(pictures: dict[str, np.ndarray]) -> Image.Image:
    page = Image.new("RGB", (3 * (SIDE + 12) + 12, 2 * (SIDE + 40) + 12), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for i, (title, pixels) in enumerate(pictures.items()):
        x, y = 12 + i % 3 * (SIDE + 12), i // 3 * (SIDE + 40)
        draw.text((x, y + 8), title, "black", font)
        page.paste(Image.fromarray(pixels[CROP]).resize((SIDE, SIDE), Image.Resampling.BOX), (x, y + 32))
    return page


def screenshot(page: Path) -> Image.Image:
    picture = page.with_suffix(".png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 760})
        tab.goto(page.as_uri())
        tab.wait_for_timeout(2000)
        tab.screenshot(path=picture)
    return Image.open(picture).convert("RGB")


if __name__ == "__main__":
    main()
