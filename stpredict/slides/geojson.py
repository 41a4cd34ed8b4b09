"""The objects of a GeoJSON file from any program: their areas and names, and which of them are no areas."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: No file of regions holds more. A small file that unpacks to more is a trap.
MAX_FILE_BYTES = 256 << 20
SUFFIXES = (".geojson", ".json", ".geojsonl", ".geojson.gz", ".json.gz", ".geojson.zip", ".json.zip")
GEOMETRIES = ("Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString", "MultiLineString", "GeometryCollection")
#: Keys under which an object lists the objects within it; QuPath writes `childObjects`.
CHILDREN = ("features", "childObjects", "children")
#: Properties that may name an object. The first that is not empty counts.
NAMES = ("name", "classification", "class", "class_name", "classname", "label", "group", "title")
#: Kinds of objects: values of `objectType` in QuPath 0.4 and later, of `object_type` in 0.3, and of `id` in 0.2.
KIND = re.compile(r"(?:path)?(annotation|cell|detection|tile|root|tma_?core)(?:object)?")


@dataclass(frozen=True)
class Feature:
    """One object: its `place` for messages, its kind if it states one, its name or class, its polygons as stored."""

    place: str
    kind: str
    name: str
    polygons: tuple[Any, ...]
    lacks: str = ""  # why it is no area


def read_features(path: Path) -> Iterator[Feature]:
    """The objects of a GeoJSON file; each is followed by those within it. Reads gzip, zip and one object per line, too.

    Raises ValueError for any other file, and OSError for one that cannot be read.
    """
    for number, (feature, geometry) in enumerate(_objects(_parse(unpacked(path))), 1):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise ValueError(f"the properties of object {number} are no list of names and values")
        name = _name(properties) or _name({key: feature.get(key) for key in ("name", "classification")})
        kind = _kind(feature, properties)
        place = f"object {number}" + (f", {name[:40]!r}" if name else "")
        polygons, lacks = _areas(geometry, place)
        if kind == "tmacore" and (properties.get("isMissing") or properties.get("missing")):
            lacks = "missing cores of an array"
        yield Feature(place, kind, name, polygons, lacks)


def is_geojson(path: Path) -> bool:
    """Whether a file's name is that of a GeoJSON file."""
    return path.name.lower().endswith(SUFFIXES)


def unpacked(path: Path) -> bytes:
    """A file's content, unpacked if it is packed. Raises ValueError if it is too large."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    try:
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(MAX_FILE_BYTES + 1)
        elif content.startswith(b"PK\x03\x04"):
            content = _in_zip(content)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError("it is packed, and damaged") from error
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MB")
    return content


def _in_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if is_geojson(Path(name)) and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise ValueError(f"it is an archive of {len(names)} GeoJSON files, and one is needed")
        with archive.open(names[0]) as packed:
            return packed.read(MAX_FILE_BYTES + 1)


def _parse(content: bytes) -> Any:
    """The value of a JSON text, or a list of values if each line is a JSON text."""
    if not content.strip(b"\0\xff\xfe\xef\xbb\xbf \r\n\t"):
        raise ValueError("it is empty")
    try:
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    if text.lstrip().startswith("<"):
        raise ValueError("it is XML, as ASAP, HALO and ImageScope write it; convert it to GeoJSON")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line.strip("\x1e \t\r") for line in text.split("\n")]
        if error.msg == "Extra data" or text.startswith("\x1e"):  # one object per line, as GDAL writes GeoJSONSeq
            try:
                return [json.loads(line) for line in lines if line]
            except (ValueError, RecursionError):
                pass
        ended = not text[error.pos :].strip()
        where = "it ends too early" if ended else f"line {error.lineno}, column {error.colno} is no JSON"
        raise ValueError(where) from error
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error
    except ValueError as error:
        raise ValueError("a number in it is too long") from error


def _objects(content: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each object and its geometry, in the order of the file: from collections, bare lists and bare geometries."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
            continue
        if not isinstance(item, dict):
            raise ValueError("it holds something else than objects")
        kind, within = item.get("type"), [key for key in CHILDREN if item.get(key) is not None]
        if any(not isinstance(item[key], list) for key in within):
            raise ValueError(f"its {within[0]} are no list")
        waiting.extend(child for key in reversed(within) for child in reversed(item[key]))
        if kind in GEOMETRIES:
            yield {}, item
        elif kind == "Feature" or "geometry" in item:
            yield item, item.get("geometry")
        elif not within:
            other = kind and kind != "FeatureCollection"
            raise ValueError(f"it holds {str(kind)[:40]!r}" if other else "it holds no features")


def _kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """annotation, cell, detection, tile, root or tmacore; "" where the object does not say."""
    stated = [properties.get("objectType"), properties.get("object_type"), feature.get("objectType")]
    if str(feature.get("id")).endswith("Object"):
        stated.append(feature["id"])
    for value in stated:
        if isinstance(value, str) and (match := KIND.fullmatch(value.strip().lower())):
            return match[1].replace("_", "")
    return "cell" if feature.get("nucleusGeometry") or properties.get("nucleusGeometry") else ""


def _name(properties: dict[str, Any]) -> str:
    lower = {str(key).strip().lower().replace(" ", "_"): value for key, value in properties.items()}
    return next((name for key in NAMES if (name := _text(lower.get(key)))), "")


def _text(value: Any, depth: int = 0) -> str:
    """A name as text. It may be a number, a class with a name, a list of classes (as QuPath's), or these as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or depth > 3:
        return ""
    if isinstance(value, list):
        return ": ".join(text for part in value if (text := _text(part, depth + 1)))
    if isinstance(value, dict):
        lower = {str(key).lower(): part for key, part in value.items()}
        return next((text for key in ("name", "names", "value") if (text := _text(lower.get(key), depth + 1))), "")
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("{", "[") and text[-1:] in ("}", "]"):  # programs that work on tables write a class as text
            for written in (text, text.replace("'", '"').replace("None", "null")):
                try:
                    return _text(json.loads(written), depth + 1)
                except (ValueError, RecursionError):
                    continue
        return "" if text.lower() in ("nan", "none", "null") else text
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _areas(geometry: Any, place: str) -> tuple[tuple[Any, ...], str]:
    """The polygons of a geometry and of those within it, or why there are none. Raises ValueError."""
    if geometry is None:
        return (), "objects without a geometry"
    found: list[Any] = []
    others, waiting = "", [geometry]
    while waiting:
        item = waiting.pop()
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in GEOMETRIES:
            raise ValueError(f"{place}: its geometry is {str(kind)[:40]!r}" if kind else f"{place}: has no geometry")
        inside = item.get("geometries" if kind == "GeometryCollection" else "coordinates")
        if not isinstance(inside, list):
            raise ValueError(f"{place}: its {kind} has no list of coordinates")
        if kind == "GeometryCollection":
            waiting.extend(reversed(inside))
        elif "Polygon" in kind:
            polygons = inside if kind == "MultiPolygon" else [inside]
            found.extend(polygon for polygon in polygons if polygon not in ([], [[]]))
        else:
            others = "points" if "Point" in kind else "lines"
    return tuple(found), "" if found else others or "objects without coordinates"
