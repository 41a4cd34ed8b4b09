"""A PNG to look at without a slide viewer: the map over the slide's overview, with a colour bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stpredict.arrays import Float32
from stpredict.files import atomic_path
from stpredict.out_of_distribution import UNUSUAL_FROM
from stpredict.rendering.cells import make_cells
from stpredict.rendering.colour import ColourScale, lookup_table
from stpredict.result import Result

OPACITY = 0.7
PREVIEW_PX = 900
MIN_BAR = 200
MARGIN, BAR_WIDTH, LABEL_WIDTH, HEADER = 16, 22, 90, 58


def draw_preview(path: Path, result: Result, values: Float32, scale: ColourScale, held_out: float) -> None:
    """Write the preview of one gene."""
    thumbnail = Image.fromarray(result.thumbnail)
    shrink = PREVIEW_PX / max(thumbnail.size)
    overview = np.asarray(
        thumbnail.resize((max(1, round(thumbnail.width * shrink)), max(1, round(thumbnail.height * shrink))))
    )
    height, width = overview.shape[:2]
    known = np.isfinite(values)
    bands = np.column_stack([scale.colours(values), np.where(known, OPACITY, 0.0)])
    downsample = max(result.canvas.dimensions[0] / width, result.canvas.dimensions[1] / height)
    painted = make_cells(result.spots, result.canvas, downsample).paint(bands, np.zeros(4)).numpy()[:height, :width]
    opacity = painted[..., 3:]
    mapped = overview.astype(np.float32)
    mapped[: painted.shape[0], : painted.shape[1]] *= 1 - opacity
    mapped[: painted.shape[0], : painted.shape[1]] += painted[..., :3] * opacity

    bar_height = max(height, MIN_BAR)
    page = Image.new("RGB", (2 * width + 4 * MARGIN + BAR_WIDTH + LABEL_WIDTH, bar_height + HEADER + MARGIN), "white")
    page.paste(Image.fromarray(overview), (MARGIN, HEADER))
    page.paste(Image.fromarray(mapped.round().astype(np.uint8)), (width + 2 * MARGIN, HEADER))
    draw = ImageDraw.Draw(page)
    reliability = f"held-out correlation {held_out:.2f}" if np.isfinite(held_out) else "never tested on held-out tissue"
    share = float(result.provenance["unusual_patches"])
    unusual = f"; {share:.0%} of patches look unlike the training data" if share > UNUSUAL_FROM else ""
    draw.text((MARGIN, 8), f"{scale.gene}  predicted on  {result.name}", "black", ImageFont.load_default(22))
    draw.text(
        (MARGIN, 36),
        f"{reliability}; {result.provenance['model']['name']}; colours: {scale.range_from}; research use only{unusual}",
        "#555555",
        ImageFont.load_default(14),
    )
    _draw_bar(page, draw, 2 * width + 3 * MARGIN, HEADER, bar_height, scale)
    with atomic_path(path) as temporary:
        page.save(temporary)


def _draw_bar(page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int, scale: ColourScale) -> None:
    font = ImageFont.load_default(14)
    top, length = y + 22, height - 44
    ramp = lookup_table(scale.colour_map)[np.linspace(255, 0, length).round().astype(int)]
    page.paste(Image.fromarray(np.repeat(ramp[:, None], BAR_WIDTH, axis=1)), (x, top))
    for value in np.linspace(scale.low, scale.high, 5):
        at = top + (scale.high - value) / (scale.high - scale.low) * (length - 1)
        draw.line((x + BAR_WIDTH, at, x + BAR_WIDTH + 5, at), "black")
        draw.text((x + BAR_WIDTH + 9, at), f"{value:.2f}", "black", font, anchor="lm")
    draw.text((x, y - 4), scale.unit.split(" of ")[0], "black", font)
