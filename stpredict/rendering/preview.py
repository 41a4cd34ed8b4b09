"""A PNG to look at without a slide viewer: the slide's overview beside a picture of it, with a colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stpredict.arrays import UInt8
from stpredict.colour_maps import lookup_table
from stpredict.rendering.cells import Layer
from stpredict.rendering.colour import ColourScale
from stpredict.rendering.overlay import blend
from stpredict.result.file import Result
from stpredict.result.frame import make_frame
from stpredict.statistics.normalisation import EXPECTED
from stpredict.storage.files import atomic_path

PREVIEW_PX = 900
MIN_BAR = 200
#: Pixels that the longest scale bar should have.
MIN_SCALE_BAR = 40
MARGIN, BAR_WIDTH, LABEL_WIDTH, HEADER = 16, 22, 90, 74


def draw_preview(
    path: Path, result: Result, layer: Layer, opacity: float | None, title: str, notes: Sequence[str],
    scale: ColourScale | None,
) -> None:  # fmt: skip
    """Write a preview: the layer over the overview at `opacity`, or on white if that is None; a bar for the scale."""
    overview = _overview(result)
    height, width = overview.shape[:2]
    frame = make_frame(result.canvas, downsample=max(1.0, max(result.canvas.dimensions) / max(width, height)))
    rgb, inside = layer(frame.columns(0, width), frame.rows(0, height))
    picture = rgb if opacity is None else blend(overview, rgb, inside, opacity)

    bar_height = max(height, MIN_BAR)
    title_font, font = ImageFont.load_default(22), ImageFont.load_default(14)
    text_width = max(title_font.getlength(title), *(font.getlength(note) for note in notes))
    bar_width = max(BAR_WIDTH + LABEL_WIDTH, int(font.getlength(without_expected(scale.unit))) if scale else 0)
    page_width = max(2 * width + 4 * MARGIN + bar_width, int(text_width) + 2 * MARGIN)
    page = Image.new("RGB", (page_width, bar_height + HEADER + MARGIN), "white")
    page.paste(Image.fromarray(overview), (MARGIN, HEADER))
    page.paste(Image.fromarray(picture), (width + 2 * MARGIN, HEADER))
    draw = ImageDraw.Draw(page)
    um = result.canvas.dimensions[0] * result.canvas.mpp.x / width
    _draw_scale_bar(draw, MARGIN + 8, HEADER + height - 8, um, width // 4)
    draw.text((MARGIN, 8), title, "black", title_font)
    for i, note in enumerate(notes):
        draw.text((MARGIN, 36 + 17 * i), note, "#555555", font)
    if scale:
        _draw_bar(page, draw, 2 * width + 3 * MARGIN, HEADER, bar_height, scale)
    with atomic_path(path) as temporary:
        page.save(temporary)


def without_expected(unit: str) -> str:
    """A unit of expression for a label, without the word that it is an expected value."""
    return unit.removesuffix(EXPECTED)


def _overview(result: Result) -> UInt8:
    """The thumbnail at no more than 900 pixels, in the slide's own proportions."""
    width, height = result.canvas.dimensions
    shrink = min(1.0, PREVIEW_PX / max(width, height))
    size = (max(1, int(np.ceil(width * shrink))), max(1, int(np.ceil(height * shrink))))
    return np.asarray(Image.fromarray(result.thumbnail).resize(size))


def tick_decimals(span: float) -> int:
    """How many decimals five ticks over a range need to differ: two, or more if the range is narrow."""
    return max(2, math.ceil(1 - math.log10(span)))


def _draw_scale_bar(draw: ImageDraw.ImageDraw, left: int, bottom: int, um_per_px: float, longest: int) -> None:
    """A line of a round length, 1, 2 or 5 times a power of ten, with that length above it; nothing on tiny pictures."""
    if longest < MIN_SCALE_BAR:
        return
    power = 10.0 ** math.floor(math.log10(longest * um_per_px))
    um = max(factor * power for factor in (1, 2, 5) if factor * power <= longest * um_per_px)
    length = round(um / um_per_px)
    text, font = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um", ImageFont.load_default(14)
    wide = max(length, round(font.getlength(text)))
    draw.rectangle((left, bottom - 30, left + wide + 12, bottom), "white")
    draw.text((left + 6 + wide / 2, bottom - 20), text, "black", font, anchor="mm")
    draw.line((left + 6 + (wide - length) // 2, bottom - 7, left + 5 + (wide + length) // 2, bottom - 7), "black", 4)


def _draw_bar(page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int, scale: ColourScale) -> None:
    font = ImageFont.load_default(14)
    top, length = y + 22, height - 44
    ramp = lookup_table(scale.colour_map)[np.linspace(255, 0, length).round().astype(int)]
    page.paste(Image.fromarray(np.repeat(ramp[:, None], BAR_WIDTH, axis=1)), (x, top))
    decimals = tick_decimals(scale.high - scale.low)
    for value in np.linspace(scale.low, scale.high, 5):
        at = top + (scale.high - value) / (scale.high - scale.low) * (length - 1)
        draw.line((x + BAR_WIDTH, at, x + BAR_WIDTH + 5, at), "black")
        draw.text((x + BAR_WIDTH + 9, at), f"{value:.{decimals}f}", "black", font, anchor="lm")
    draw.text((x, y - 4), without_expected(scale.unit), "black", font)
