"""Regions drawn on a slide: polygons of a GeoJSON file, as QuPath exports its annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.errors import RegionsError
from stpredict.slides.lattice import MAX_SIDE

MAX_FILE_BYTES = 256 << 20
#: What QuPath calls single cells; they are counted elsewhere, and regions are what lies around them.
NOT_REGIONS = ("cell", "detection")
UNNAMED = "unnamed"


@dataclass(frozen=True)
class Region:
    """What goes by one name: polygons of n x 2 corners (x, y), each an outline and the holes in it."""

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


def read_regions(path: Path) -> dict[str, Region]:
    """The areas of a GeoJSON file by name, in the file's order; those of one name are one region.

    The name is the object's own or, where it has none, its class. Coordinates are kept as they are.
    Raises RegionsError for a file that cannot be read, holds no areas, or something else than areas.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        found: dict[str, tuple[tuple[Float, ...], ...]] = {}
        for feature in _features(content):
            properties = feature.get("properties") or {}
            if properties.get("objectType") not in NOT_REGIONS:
                name = _name(properties)
                found[name] = found.get(name, ()) + tuple(_polygons(feature["geometry"]))
    except OSError as error:
        raise RegionsError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise RegionsError(f"{path}: not a GeoJSON file of areas, or a damaged one ({what}).") from error
    if not found:
        raise RegionsError(f"{path}: holds no regions.")
    return {name: Region(polygons) for name, polygons in found.items()}


def _features(content: Any) -> list[Any]:
    """The features of a collection, of a bare list as older QuPath wrote it, or the only one."""
    if isinstance(content, list):
        return content
    features = content["features"] if content["type"] == "FeatureCollection" else [content]
    if not isinstance(features, list):
        raise ValueError("its features are no list")
    return features


def _name(properties: dict[str, Any]) -> str:
    name = properties.get("name") or (properties.get("classification") or {}).get("name") or UNNAMED
    if not isinstance(name, str):
        raise ValueError("a name is no text")
    return name


def _polygons(geometry: dict[str, Any]) -> Iterator[tuple[Float, ...]]:
    """The polygons of a Polygon or a MultiPolygon, each an outline and its holes."""
    kind = geometry["type"]
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"{str(kind)[:40]!r} is no area")
    for rings in [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]:
        polygon = tuple(np.asarray(ring, dtype=np.float64) for ring in rings)
        if not polygon or any(ring.ndim != 2 or ring.shape[1] < 2 or len(ring) < 3 for ring in polygon):
            raise ValueError("a polygon needs at least three corners of x and y")
        if not all((np.abs(ring) < MAX_SIDE).all() for ring in polygon):  # NaN is not either
            raise ValueError("a corner lies on no slide")
        yield tuple(ring[:, :2] for ring in polygon)


def _inside_ring(points: Float, ring: Float) -> Bool:
    """Which points lie inside a ring or on it."""
    from skimage.measure import points_in_poly

    return np.asarray(points_in_poly(points, ring), dtype=np.bool_)
