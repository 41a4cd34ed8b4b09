"""Regions drawn on a slide: polygons of a GeoJSON file, as QuPath exports its annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.errors import RegionsError
from stpredict.slides.geojson import read_features
from stpredict.slides.lattice import MAX_SIDE

#: QuPath's kinds of objects that are no regions: single cells, which are counted elsewhere, and the whole slide.
NOT_REGIONS = {"cell": "cells", "detection": "detections", "root": "objects of the whole slide"}
#: Tiles without a class are taken for regions only where there is nothing else.
UNNAMED_TILES = "tiles without a class"
UNNAMED = "unnamed"


@dataclass(frozen=True)
class Region:
    """All areas of one name: polygons, each an outline and the holes in it, of n x 2 corners (x, y)."""

    polygons: tuple[tuple[Float, ...], ...]

    def contains(self, centres: Float) -> Bool:
        """Which points (n x 2) lie inside or on an outline, and neither in nor on a hole."""
        inside = np.zeros(len(centres), np.bool_)
        for outline, *holes in self.polygons:
            near = np.flatnonzero(((centres >= outline.min(axis=0)) & (centres <= outline.max(axis=0))).all(axis=1))
            kept = _inside_ring(centres[near], outline)
            for hole in holes:
                kept &= ~_inside_ring(centres[near], hole)
            inside[near] |= kept
        return inside


def read_regions(path: Path, tell: Callable[[str], None] = lambda _: None) -> dict[str, Region]:
    """The areas of a GeoJSON file by name, in the file's order. Areas of the same name form one region.

    The name is the object's own or, if it has none, its class. Coordinates are kept as they are. Cells, points, lines
    and other objects without an area are skipped; `tell` hears how many.
    Raises RegionsError for a file that cannot be read, holds no areas, or holds an impossible one.
    """
    found: dict[str, list[tuple[Float, ...]]] = {}
    tiles: list[tuple[Float, ...]] = []
    passed: Counter[str] = Counter()
    try:
        for feature in read_features(path):
            reason = NOT_REGIONS.get(feature.kind) or feature.lacks
            if reason:
                passed[reason] += 1
                continue
            polygons = [_polygon(rings, feature.place) for rings in feature.polygons]
            if feature.kind == "tile" and not feature.name:
                tiles += polygons
                passed[UNNAMED_TILES] += 1
            else:
                found.setdefault(feature.name or UNNAMED, []).extend(polygons)
    except OSError as error:
        raise RegionsError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise RegionsError(f"{path}: not a GeoJSON file of areas, or a damaged one ({error}).") from error
    if tiles and not found:
        found[UNNAMED] = tiles
        del passed[UNNAMED_TILES]
    others = ", ".join(f"{reason} ({count})" for reason, count in passed.items())
    if not found:
        raise RegionsError(f"{path}: holds no regions{f', only {others}' if others else ''}.")
    if others:
        tell(f"{path}: passed over what is no region: {others}")
    return {name: Region(tuple(polygons)) for name, polygons in found.items()}


def _polygon(rings: Any, place: str) -> tuple[Float, ...]:
    """An outline and its holes. Raises ValueError, whose message names the object, for anything else."""
    if not isinstance(rings, list) or not rings:
        raise ValueError(f"{place}: a polygon is a list of rings")
    outline, *holes = rings
    polygon = tuple(_ring(ring, place) for ring in (outline, *(hole for hole in holes if hole != [])))
    if not all((np.abs(ring) < MAX_SIDE).all() for ring in polygon):  # false for NaN, too
        raise ValueError(f"{place}: a corner lies on no slide")
    return polygon


def _ring(ring: Any, place: str) -> Float:
    try:
        if any(isinstance(corner, str) for corner in ring):
            raise TypeError
        corners = np.array([[corner[0], corner[1]] for corner in ring], dtype=np.float64)  # a third number is a height
    except OverflowError as error:
        raise ValueError(f"{place}: a corner lies on no slide") from error
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{place}: a corner is not two numbers, x and y") from error
    if corners.ndim != 2 or len(corners) < 3:
        raise ValueError(f"{place}: a polygon needs at least three corners of x and y")
    return corners


def _inside_ring(points: Float, ring: Float) -> Bool:
    """Which points lie inside a ring or on it."""
    from skimage.measure import points_in_poly

    return np.asarray(points_in_poly(points, ring), dtype=np.bool_)
