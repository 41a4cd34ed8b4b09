"""What a picture of a result should show, by brute force: no code that draws is used to say so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cmap
import matplotlib
import numpy as np
from readers import TILE

from stpredict.result.file import Result
from stpredict.slides.slide import Slide, open_slide

#: Closer than this, in um and px, a place is as far from one spot or edge as from another: either is right.
TIE = 1e-6
ALTERNATIVES = 4
NO_SPOT, NO_ALTERNATIVE = -1, -2
#: Side of the squares over which JPEG pictures are averaged before they are compared, and by how much they may differ:
#: at the size of the slide, and where it was reduced.
WINDOW, TOLERANCE, TOLERANCE_IF_REDUCED = 8, 2.0, 3.0
MAX_WINDOWS, MAX_SAMPLES = 16, 8
SUFFIXES = (".ome.tif", ".tif", ".geojson.gz", ".geojson", ".csv")


@dataclass(frozen=True, eq=False)
class Ground:
    """A result and where its spots lie, by brute force."""

    result: Result

    @cached_property
    def lattice(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres of all places of the lattice in the bounds, n x 2, and the result's spot at each or NO_SPOT."""
        spots, bounds = self.result.spots, self.result.canvas.bounds
        if spots.layout == "given":
            return spots.centres, np.arange(len(spots))
        hexagonal = spots.layout == "hex"
        pitch_x, pitch_y = spots.pitch_um / np.array(self.result.canvas.mpp)
        step_y = pitch_y * math.sqrt(3) / 2 if hexagonal else pitch_y
        taken = {place: i for i, place in enumerate(zip(spots.row.tolist(), spots.column.tolist(), strict=True))}
        centres, spot = [], []
        for row in range(int(bounds.height / step_y) + 2):
            y = pitch_y / 2 + row * step_y
            for column in range(int(bounds.width / pitch_x) + 2):
                x = pitch_x / 2 + column * pitch_x + (pitch_x / 2 if hexagonal and row % 2 else 0)
                if x < bounds.width and y < bounds.height:
                    centres.append((bounds.x + x, bounds.y + y))
                    spot.append(taken.get((row, column), NO_SPOT))
        return np.array(centres), np.array(spot)

    def spots_at(self, places: np.ndarray) -> np.ndarray:
        """The spots that level-0 places may belong to, places x alternatives: several if as near, or NO_SPOT."""
        centres, spot = self.lattice
        spots, canvas = self.result.spots, self.result.canvas
        found = np.full((len(places), ALTERNATIVES + 1), NO_ALTERNATIVE)
        at_once = max(1, 4_000_000 // len(centres))
        for start in range(0, len(places), at_once):
            part = np.s_[start : start + at_once]
            x, y = places[part].T
            squares = ((x[:, None] - centres[:, 0]) * canvas.mpp.x) ** 2
            squares += ((y[:, None] - centres[:, 1]) * canvas.mpp.y) ** 2
            nearest = np.argpartition(squares, min(ALTERNATIVES, len(centres)) - 1, axis=1)[:, :ALTERNATIVES]
            distance = np.sqrt(np.take_along_axis(squares, nearest, axis=1))
            shortest = distance.min(axis=1)
            if spots.layout == "given":
                depth = canvas.spot_diameter_um / 2 - shortest
            else:
                left, top, width, height = canvas.bounds
                depth = np.min([x - left, left + width - x, y - top, top + height - y], axis=0)
            near = (distance <= shortest[:, None] + TIE) & (depth >= -TIE)[:, None]
            found[part, : nearest.shape[1]] = np.where(near, spot[nearest], NO_ALTERNATIVE)
            found[part, -1] = np.where(depth <= TIE, NO_SPOT, NO_ALTERNATIVE)
        return found

    @cached_property
    def slide(self) -> Slide:
        return open_slide(self.result.path.parent / self.result.provenance["slide"]["path"])


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what it should show."""

    ground: Ground
    path: Path

    @property
    def result(self) -> Result:
        return self.ground.result

    @property
    def suffix(self) -> str:
        return next(suffix for suffix in SUFFIXES if self.path.name.endswith(suffix))

    @property
    def style(self) -> str:
        """heatmap, overlay, pca, channels, spots or expression."""
        return self.path.name.removesuffix(self.suffix).rpartition(".")[2].partition("-")[0]

    @cached_property
    def record(self) -> dict[str, Any]:
        text = self.path.with_name(f"{self.path.name.removesuffix(self.suffix)}.json").read_text()
        return dict(json.loads(text))

    @property
    def origin(self) -> np.ndarray:
        """Level-0 pixel at which the picture begins."""
        bounds = self.result.canvas.bounds
        return np.array([bounds.x, bounds.y] if self.record["origin"] == "bounds" else [0, 0])

    @property
    def scale(self) -> float:
        return float(self.record["downsample"])

    @property
    def mpp(self) -> tuple[float, float]:
        x, y = self.result.canvas.mpp
        return x * self.scale, y * self.scale

    @property
    def size(self) -> tuple[int, int]:
        canvas = self.result.canvas
        width, height = canvas.bounds[2:] if self.record["origin"] == "bounds" else canvas.dimensions
        return math.ceil(width / self.scale), math.ceil(height / self.scale)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of all levels: halves, without what is left over, until a tile holds the picture."""
        sizes = [self.size]
        while max(self.size) > TILE * 2 ** (len(sizes) - 1) and (min(self.size) >> len(sizes)):
            sizes.append((max(1, self.size[0] >> len(sizes)), max(1, self.size[1] >> len(sizes))))
        return sizes

    @property
    def genes(self) -> list[str]:
        return [gene["gene"] for gene in self.record["genes"]] if "genes" in self.record else [self.record["gene"]]

    def places(self, level: int, pixels: np.ndarray) -> np.ndarray:
        """Level-0 places of the centres of a level's pixels."""
        return np.asarray(self.origin + (pixels + 0.5) * (self.scale * 2**level))

    @cached_property
    def asked(self) -> list[np.ndarray]:
        """Of each level the pixels to look at, n x 2."""
        ask = self._windows if self.style == "overlay" else self._pixels
        return [ask(level, np.random.default_rng(level)) for level in range(len(self.sizes))]

    def _pixels(self, level: int, rng: np.random.Generator) -> np.ndarray:
        """Pixels around the edges of a level's first, middle and last tiles, around those of some spots, and others."""
        size = self.sizes[level]
        corners = [(x, y) for x in _landmarks(size[0]) for y in _landmarks(size[1])]
        pixels = np.concatenate([corners, self._spot_edges(level, rng, 12), rng.integers(0, size, (100, 2))])
        return np.unique(pixels[((pixels >= 0) & (pixels < size)).all(axis=1)], axis=0)

    def _spot_edges(self, level: int, rng: np.random.Generator, count: int) -> np.ndarray:
        """Pixels in the centres of some spots, and on both sides of their left, right, upper and lower ends."""
        scale, extent = self.scale * 2**level, np.array(spot_size(self.result)) / 2
        chosen = np.append(rng.integers(0, len(self.result.spots), count), [0, len(self.result.spots) - 1])
        pixels = []
        for centre in self.result.spots.centres[chosen] - self.origin:
            pixels.append(np.floor(centre / scale))
            for axis in (0, 1):
                for side in (-1, 1):
                    pixel = np.floor(centre / scale)
                    pixel[axis] = np.ceil((centre + side * extent)[axis] / scale - 0.5)  # the first beyond the edge
                    pixels += [pixel, pixel - np.eye(2)[axis]]
        return np.array(pixels, dtype=int)

    def _windows(self, level: int, rng: np.random.Generator) -> np.ndarray:
        """All pixels of some windows that lie wholly on the slide, window after window."""
        side = self._window_side(level)
        # the last pixel of a picture that is not of the slide's own size may lie half beyond the slide
        size = np.array(self.sizes[level]) - (self.scale != 1)
        corners = [(x, y) for x in _landmarks(size[0])[::2] for y in _landmarks(size[1])[::2]]
        corners = np.concatenate([corners, self._spot_edges(level, rng, 3)])
        corners = np.unique(np.clip(corners - side // 2, 0, size - side), axis=0)
        corners = corners[rng.permutation(len(corners))[:MAX_WINDOWS]]
        within = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
        return np.asarray((corners[:, None] + within).reshape(-1, 2))

    def _window_side(self, level: int) -> int:
        return min(WINDOW, *(side - (self.scale != 1) for side in self.sizes[level]))

    def compare(self, level: int, values: np.ndarray) -> tuple[int, int, str]:
        """Of the asked pixels' `values`, NaN where not read, how many are wrong and how many right, and one of them."""
        if self.style == "overlay":
            return self._compare_windows(level, values)
        spots, low, high = self._expected(level)
        values = values.astype(low.dtype)  # Bio-Formats tells float32 in decimals
        right = ((values[:, None] >= low) & (values[:, None] <= high)).all(axis=-1) & (spots != NO_ALTERNATIVE)
        right, was_read = right.any(axis=1), np.isfinite(values).all(axis=1)
        wrong = np.flatnonzero(was_read & ~right)
        told = ""
        if len(wrong):
            i, k = wrong[0], np.flatnonzero(spots[wrong[0]] != NO_ALTERNATIVE)[0]
            told = f"at {self.asked[level][i].tolist()}: {values[i].tolist()}"
            told += f" instead of {low[i, k].tolist()} to {high[i, k].tolist()} of spot {spots[i, k]}"
        return len(wrong), int(right.sum()), told

    @cache  # noqa: B019 - as long as a picture is looked at
    def _expected(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the asked pixels, the spots that they may belong to, and the lowest and highest values with each."""
        places = self.places(level, self.asked[level])
        spots = self.ground.spots_at(places)
        return spots, *self._allowed(places, spots)

    def _allowed(self, places: np.ndarray, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values, places x alternatives x bands, if each place belonged to those spots."""
        if self.style == "channels":
            values = np.column_stack(
                [np.append(np.nan_to_num(self.result.expression(gene)), np.float32(0)) for gene in self.genes]
            )
            return values[spots], values[spots]
        position, slack = (np.append(part, np.full((1, part.shape[1]), np.nan), axis=0) for part in self._positions)
        position, slack = position[spots], slack[spots]
        if self.record["smooth"]:
            slack = slack + self._steepness(places, spots) * np.ptp(self._positions[0][self._known], axis=0)
        white = np.isnan(position).any(axis=-1)
        first, last = (
            np.clip(np.nan_to_num(side), 0, 255).round().astype(int) for side in (position - slack, position + slack)
        )
        if self.style == "heatmap":
            table = colour_table(self.record["colour_map"])
            ranges = [table[i : j + 1] for i, j in zip(first.ravel(), last.ravel(), strict=True)]
            first, last = (
                np.array([side(colours, axis=0) for colours in ranges]).reshape(*spots.shape, 3)
                for side in (np.min, np.max)
            )
        first[white] = last[white] = 255
        return first.astype(float), last.astype(float)

    @property
    def _known(self) -> np.ndarray:
        return np.asarray(np.isfinite(self._positions[0]).all(axis=1))

    @cached_property
    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each spot's values lie between 0 (first colour) and 255 (last), spots x bands, and how sure that is."""
        record = self.record
        if self.style != "pca":
            values = self.result.expression(record["gene"]).astype(float)[:, None]
            position = (values - record["low"]) / (record["high"] - record["low"]) * 255
            return position, np.full_like(position, 0.01)
        colours = [record[colour] for colour in ("red", "green", "blue")]
        values = np.column_stack([self.result.expression(gene).astype(float) for gene in colours[0]["loadings"]])
        centred = values - np.nanmean(values[np.isfinite(values).all(axis=1)], axis=0)
        loadings = np.array([list(colour["loadings"].values()) for colour in colours])
        low, high = (np.array([colour[end] for colour in colours]) for end in ("low", "high"))
        rounding = 5e-5  # of all three in the record
        slack = (np.abs(centred).sum(axis=1, keepdims=True) + 2) * rounding / (high - low) * 255 + 0.01
        return (centred @ loadings.T - low) / (high - low) * 255, slack

    def _steepness(self, places: np.ndarray, spots: np.ndarray) -> np.ndarray:
        """By what share of their range values may at most differ from the spot's, if they are interpolated."""
        off = np.abs(places[:, None] - self.result.spots.centres[spots]) * self.result.canvas.mpp
        # nodes of a hexagonal lattice are half a pitch apart in a row, and rows closer than a pitch
        return np.asarray(off @ np.array([2, 2 / math.sqrt(3)]) / self.result.spots.pitch_um)[..., None]

    def _compare_windows(self, level: int, values: np.ndarray) -> tuple[int, int, str]:
        means = values.reshape(-1, self._window_side(level) ** 2, 3).mean(axis=1)
        expected = self._window_means(level)
        off = np.abs(means - expected).max(axis=1)
        was_read = np.isfinite(off)
        worst = int(np.nan_to_num(off).argmax())
        corner = self.asked[level][worst * self._window_side(level) ** 2]
        told = f"window at {corner.tolist()}: {means[worst].round(1)} instead of {expected[worst].round(1)}"
        wrong = int((off[was_read] > (TOLERANCE if self.scale == 1 else TOLERANCE_IF_REDUCED)).sum())
        return wrong, int(was_read.sum()) - wrong, told

    @cache  # noqa: B019 - as long as a picture is looked at
    def _window_means(self, level: int) -> np.ndarray:
        """Mean colours of slide and map over the level-0 pixels beneath each window."""
        side = self._window_side(level)
        return np.array([self._window_mean(level, corner, side) for corner in self.asked[level][:: side**2]])

    def _window_mean(self, level: int, corner: np.ndarray, side: int) -> np.ndarray:
        scale = self.scale * 2**level
        fine = min(math.ceil(scale), MAX_SAMPLES)  # per pixel and axis
        step = scale / fine
        edges = (self.origin + corner * scale)[:, None] + np.arange(side * fine + 1) * step
        left, top = (int(first) for first in edges[:, 0])
        right, bottom = (math.ceil(last) for last in edges[:, -1])
        base = self.ground.slide.read(0, left, top, right - left, bottom - top).astype(float)
        x, y = edges[:, :-1] + step / 2
        if step > 1:  # each sample of the slide is a mean
            first_x, first_y = np.round(edges[0]).astype(int) - left, np.round(edges[1]).astype(int) - top
            base = base[: first_y[-1], : first_x[-1]]
            sums = np.add.reduceat(np.add.reduceat(base, first_y[:-1], axis=0), first_x[:-1], axis=1)
            base = sums / (np.diff(first_y)[:, None] * np.diff(first_x))[..., None]
        else:
            base = base[(y.astype(int) - top)[:, None], x.astype(int) - left]
        # a pixel of the picture, however large, belongs wholly to the spot at its centre
        x, y = (
            start + (np.floor((at - start) / self.scale) + 0.5) * self.scale
            for start, at in zip(self.origin, (x, y), strict=True)
        )
        spot = self.ground.spots_at(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).max(axis=1)
        position = np.append(self._positions[0][:, 0], np.nan)[spot]
        index = np.clip(np.nan_to_num(position), 0, 255).round().astype(int)
        share = np.where(np.isnan(position), 0, self.record["opacity"])[:, None]
        base = base.reshape(-1, 3)
        return np.asarray((base + (colour_table(self.record["colour_map"])[index] - base) * share).mean(axis=0))


def spot_size(result: Result) -> tuple[float, float]:
    """Width and height of a spot, in level-0 pixels."""
    spots, canvas = result.spots, result.canvas
    width, height = {
        "square": (spots.pitch_um, spots.pitch_um),
        "hex": (spots.pitch_um, 2 * spots.pitch_um / math.sqrt(3)),
        "given": (canvas.spot_diameter_um, canvas.spot_diameter_um),
    }[spots.layout]
    return width / canvas.mpp.x, height / canvas.mpp.y


def _landmarks(length: int) -> list[int]:
    """Both ends of a side, its middle, and what lies on both sides of its first and last border between tiles."""
    last = (length - 1) // TILE * TILE
    return sorted({x for x in (0, TILE - 1, TILE, length // 2, last - 1, last, length - 1) if 0 <= x < length})


@cache
def colour_table(colour_map: str) -> np.ndarray:
    """256 x 3 RGB, from Matplotlib where it has the map."""
    if colour_map in matplotlib.colormaps:
        colours = matplotlib.colormaps[colour_map](np.arange(256))
    else:
        colours = cmap.Colormap(colour_map).lut(256)
    return np.asarray(np.round(np.asarray(colours)[:, :3] * 255), dtype=int)
