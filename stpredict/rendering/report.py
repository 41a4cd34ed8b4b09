"""One page per slide that opens from disk: the slide to zoom into, maps over it, and how far to trust them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stpredict.arrays import Float32, Int
from stpredict.colour_maps import lookup_table
from stpredict.errors import ResultError
from stpredict.model.reliability import PREDICTED_FROM
from stpredict.rendering.account import describe_card, facts, flat, reliability
from stpredict.rendering.colour import ColourScale
from stpredict.result.file import Result
from stpredict.slides.lattice import lattice_shape, steps
from stpredict.slides.overview import make_overview
from stpredict.slides.slide import Mpp, Slide
from stpredict.storage.files import atomic_path

PAGE = Path(__file__).parent / "page"
#: The slide is reduced to this side, or further until its tiles fit into the page; base64 makes them a third larger.
MAX_SIDE = 8192
MAX_IMAGE_BYTES = 5_500_000
QUALITY = 75
#: With one pixel of each neighbour around it, a tile is at most 512 pixels wide.
TILE_PX = 510
#: Expression is stored in this many steps between a gene's lowest and highest value; the code after them means NaN.
STEPS = 65_534


def write_report(path: Path, result: Result, genes: Sequence[int], scales: Sequence[ColourScale], slide: Slide) -> None:
    """Write one self-contained page. `genes` are indices into result.genes, `scales` the colour scale of each.

    Raises SlideError if the slide cannot be decoded, ResultError if the result's provenance is damaged.
    """
    try:
        about = {
            "facts": [{"text": text, "warning": warning} for text, warning in facts(result, genes)],
            "card": describe_card(result.provenance.get("card")),
            "provenance": list(flat(result.provenance)),
            "model": str(result.provenance["model"]["name"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{result.path.name}: damaged, its provenance or model card cannot be read.") from error
    canvas = result.canvas
    data = {
        **about,
        "name": result.name,
        "slide": {"dimensions": canvas.dimensions, "bounds": canvas.bounds, "mpp": canvas.mpp},
        "image": _pyramid(slide, canvas.mpp),
        "spots": _spots(result),
        "genes": [_gene(result, index, scale) for index, scale in zip(genes, scales, strict=True)],
        "colours": {name: _encoded(lookup_table(name)) for name in sorted({scale.colour_map for scale in scales})},
    }
    page = _page(data)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _page(data: dict[str, Any]) -> str:
    """The page with its style, scripts and data. It allows only its two scripts to run, by their hashes."""
    library = _part("openseadragon.min.js").split("//# sourceMappingURL")[0]
    ours = _part("spots.js") + _part("page.js")
    hashes = [b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (library, ours)]
    parts = {
        "css": _part("page.css"),
        "js": ours,
        "openseadragon": library,
        "licence": _part("openseadragon.LICENSE.txt"),
        "hashes": " ".join(f"'sha256-{digest}'" for digest in hashes),
        "data": _script_safe(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """JSON, in ASCII, with nothing that could end the script element around it."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _encoded(values: np.ndarray) -> dict[str, str]:
    """An array for the page's typed arrays: row-major, little-endian."""
    content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return {"type": values.dtype.name, "data": b64encode(content).decode()}


def _pyramid(slide: Slide, mpp: Mpp) -> dict[str, Any]:
    """The slide as JPEG tiles, coarsest level first, with pixels that are square in um."""
    sides_um = [size * um for size, um in zip(slide.dimensions, mpp, strict=True)]
    pixel_um = max(*mpp, max(sides_um) / MAX_SIDE)
    width, height = (max(1, round(side / pixel_um)) for side in sides_um)
    image = Image.fromarray(make_overview(slide, width, height))
    while True:
        levels = [image]
        while max(levels[0].size) > TILE_PX:
            levels.insert(0, levels[0].reduce(2))
        tiles = [list(_tiles(level)) for level in levels]
        excess = sum(len(tile) for level in tiles for tile in level) / MAX_IMAGE_BYTES
        if excess <= 1 or max(image.size) <= TILE_PX:
            break
        shrink = 0.97 / excess**0.5
        image = image.resize([max(1, round(side * shrink)) for side in image.size], Image.Resampling.BOX)
    return {
        "width": image.width,
        "height": image.height,
        "tile_px": TILE_PX,
        "levels": [[b64encode(tile).decode() for tile in level] for level in tiles],
    }


def _tiles(image: Image.Image) -> Iterator[bytes]:
    """JPEG tiles of one level, row by row, without metadata. Tiles overlap by a pixel on each side."""
    for y in range(0, image.height, TILE_PX):
        for x in range(0, image.width, TILE_PX):
            right, bottom = min(x + TILE_PX + 1, image.width), min(y + TILE_PX + 1, image.height)
            stream = io.BytesIO()
            image.crop((max(x - 1, 0), max(y - 1, 0), right, bottom)).save(stream, "JPEG", quality=QUALITY)
            yield stream.getvalue()


def _spots(result: Result) -> dict[str, Any]:
    """Where the spots lie: row and column on a lattice in um, or given level-0 centres."""
    spots, canvas = result.spots, result.canvas
    described: dict[str, Any] = {
        "layout": spots.layout,
        "diameter_um": canvas.spot_diameter_um,
        "row": _encoded(_narrow(spots.row)),
        "column": _encoded(_narrow(spots.column)),
        "tissue": _encoded(np.round(np.clip(np.nan_to_num(result.tissue_fraction), 0, 1) * 255).astype(np.uint8)),
    }
    if spots.layout == "given":
        return described | {axis: _encoded(spots.centres[:, i].astype(np.float32)) for i, axis in enumerate("xy")}
    (step_x, step_y), first_y = steps(canvas.mpp, spots.pitch_um, spots.layout)
    rows, columns = lattice_shape(canvas.bounds, canvas.mpp, spots.pitch_um, spots.layout)
    in_um = {
        "step_x": step_x * canvas.mpp.x,
        "step_y": step_y * canvas.mpp.y,
        "first_y": first_y * canvas.mpp.y,
    }
    return described | in_um | {"rows": rows, "columns": columns}


def _narrow(values: Int) -> np.ndarray:
    """Counts from 0 in the smallest type that holds them: at most MAX_SPOTS, so uint32."""
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def _gene(result: Result, index: int, scale: ColourScale) -> dict[str, Any]:
    gene = result.genes[index]
    held_out = gene.held_out_correlation
    return {
        "name": gene.name,
        "held_out": round(held_out, 4) if isfinite(held_out) else None,
        "reliability": reliability(held_out),
        "poor": not held_out >= PREDICTED_FROM,
        "low": _finite(scale.low),
        "high": _finite(scale.high),
        "unit": scale.unit,
        "range_from": scale.range_from,
        "colour_map": scale.colour_map,
        "values": _quantised(result.expression(gene.name)),
    }


def _quantised(values: Float32) -> dict[str, Any]:
    """Values as uint16 codes: a value is `low` + code * `step`; the last code means no value."""
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    step = (high - low) / STEPS or 1.0
    codes = np.where(known, np.round((np.where(known, values, low).astype(float) - low) / step), STEPS + 1)
    return {"low": low, "step": step, **_encoded(codes.astype(np.uint16))}


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
