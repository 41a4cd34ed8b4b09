from __future__ import annotations

import codecs
import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stpredict.commands.predict import check_mask
from stpredict.errors import RegionsError, UsageError
from stpredict.prediction.request import Request
from stpredict.slides.mask import read_mask
from stpredict.slides.regions import read_regions

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
FAR = [[100, 100], [109, 100], [109, 109], [100, 109], [100, 100]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}
POINT, LINE = {"type": "Point", "coordinates": [1, 2]}, {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}


def feature(geometry: object = POLYGON, **more: object) -> dict:
    properties = more.pop("properties", {"classification": {"name": "Tumor"}})
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def collection(*features: dict) -> dict:
    return {"type": "FeatureCollection", "features": list(features)}


def found(path: Path, content: object) -> tuple[dict[str, int], list[str]]:
    """How many polygons go by each name, and what was told."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    told: list[str] = []
    regions = read_regions(path, told.append)
    return {name: len(region.polygons) for name, region in regions.items()}, told


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (feature(id="PathCellObject"), "cells"),
        (feature(id="PathDetectionObject"), "detections"),
        (feature(properties={"object_type": "cell"}), "cells"),
        (feature(properties={"objectType": "detection"}), "detections"),
        (feature(properties={"objectType": "Cell"}), "cells"),
        (feature(objectType="cell"), "cells"),
        (feature(nucleusGeometry=POLYGON), "cells"),
        (feature(properties={"objectType": "root"}), "objects of the whole slide"),
        (feature(properties={"objectType": "tile"}), "tiles without a class"),
        (feature(properties={"objectType": "tma_core", "isMissing": True}), "missing cores of an array"),
        (feature(POINT), "points"),
        (feature({"type": "MultiPoint", "coordinates": [[1, 2]]}), "points"),
        (feature(LINE), "lines"),
        (feature({"type": "GeometryCollection", "geometries": [POINT, LINE]}), "lines"),
        (feature(None), "objects without a geometry"),
        (feature({"type": "Polygon", "coordinates": []}), "objects without coordinates"),
        (feature({"type": "MultiPolygon", "coordinates": [[[]]]}), "objects without coordinates"),
    ],
)
def test_what_is_no_area_is_passed_over_and_counted(tmp_path: Path, other: dict, reason: str):
    path = tmp_path / "s.geojson"
    assert found(path, collection(other, feature(), other)) == (
        {"Tumor": 1}, [f"{path}: passed over what is no region: {reason} (2)"],
    )  # fmt: skip
    path.write_text(json.dumps([other]))
    if reason != "tiles without a class":
        with pytest.raises(RegionsError, match=rf"holds no regions, only {reason} \(1\)"):
            read_regions(path)


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "colorRGB": 1}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ({"classification": '{"name": "Tumor"}'}, "Tumor"),
        ({"classification": "{'names': ['Tumor', 'Positive'], 'color': None}"}, "Tumor: Positive"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"name": None, "classification": {"name": "Stroma"}}, "Stroma"),
        ({"name": float("nan"), "classification": None}, "unnamed"),
        ({"name": "  ", "classification": {}}, "unnamed"),
        ({"name": 12}, "12"),
        ({"name": 12.0}, "12"),
        ({"name": 0}, "0"),
        ({"Name": "nest 3", "Class": "Tumor"}, "nest 3"),
        ({"label": {"value": "in situ"}}, "in situ"),
        ({"objectType": "tma_core", "name": "A-1"}, "A-1"),
        ({"objectType": "tile", "classification": {"name": "Tumor"}}, "Tumor"),
        ({"objectType": "tile"}, "unnamed"),
        (None, "unnamed"),
    ],
)
def test_names_are_read_however_they_are_written(tmp_path: Path, properties: object, name: str):
    assert found(tmp_path / "s.geojson", [feature(properties=properties)]) == ({name: 1}, [])


@pytest.mark.parametrize(
    "content",
    [
        POLYGON,
        [POLYGON],
        feature(),
        collection(collection(feature())),
        {"features": [feature()], "crs": {"type": "name", "properties": {"name": "none"}}},
        {"geometry": POLYGON},
        feature({"type": "GeometryCollection", "geometries": [POINT, POLYGON]}),
        feature({"type": "Polygon", "coordinates": [SQUARE[:-1]]}),
        feature({"type": "Polygon", "coordinates": [[[str(x), str(y)] for x, y in SQUARE], []]}),
        feature({"type": "Polygon", "coordinates": [[[0, 0, 0], *SQUARE[1:]]]}),
        json.dumps(feature()) + "\n" + json.dumps(feature(POINT)),
        "\x1e" + json.dumps(feature()) + "\n\x1e" + json.dumps(feature(POINT)) + "\n",
    ],
)
def test_bare_nested_and_untidy_objects_are_read(tmp_path: Path, content: object):
    found(tmp_path / "s.geojson", content)
    (region,) = read_regions(tmp_path / "s.geojson").values()
    assert region.contains(np.array([[4.0, 4.0], [50.0, 50.0]])).tolist() == [True, False]


def test_children_follow_their_parents_and_holes_stay_holes(tmp_path: Path):
    hole = [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    inner = feature({"type": "MultiPolygon", "coordinates": [[SQUARE, hole], [FAR]]}, properties={"name": "nests"})
    outer = feature(childObjects=[inner, feature(properties={"objectType": "cell"})])
    content = feature(None, properties={"objectType": "root"}, childObjects=[outer])
    told = [f"{tmp_path / 's.geojson'}: passed over what is no region: objects of the whole slide (1), cells (1)"]
    assert found(tmp_path / "s.geojson", content) == ({"Tumor": 1, "nests": 2}, told)
    nests = read_regions(tmp_path / "s.geojson")["nests"]
    assert nests.contains(np.array([[1.0, 1.0], [4.0, 4.0], [105.0, 105.0]])).tolist() == [True, False, True]


def packed(content: bytes) -> bytes:
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        archive.writestr("s.geojson", content)
    return into.getvalue()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("s.geojson.gz", gzip.compress),
        ("s.geojson", gzip.compress),
        ("s.geojson.zip", packed),
        ("S.GEOJSON", lambda content: codecs.BOM_UTF8 + content),
        ("s.json", lambda content: content.decode().encode("utf-16")),
        ("s.json", lambda content: content.decode().encode("utf-16-le")),
    ],
)
def test_packed_files_and_other_encodings_are_read_as_mask_and_as_regions(tmp_path: Path, name: str, write):
    content = json.dumps(feature(properties={"name": "Tumör"}), ensure_ascii=False).encode()
    (tmp_path / name).write_bytes(write(content))
    assert list(read_regions(tmp_path / name)) == ["Tumör"]
    (region,) = read_mask(tmp_path / name)
    assert len(region.polygons) == 1


def bomb() -> bytes:
    into = io.BytesIO()
    with gzip.GzipFile(fileobj=into, mode="wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    return into.getvalue()


def corner(value: object) -> dict:
    geometry = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], value]]}
    return collection(feature(), feature(geometry, properties={"name": "nest"}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (corner([1, None]), "object 2, 'nest': a corner lies on no slide"),
        (corner([1]), "object 2, 'nest': a corner is not two numbers"),
        (corner("12"), "object 2, 'nest': a corner is not two numbers"),
        (corner(["1,5", "2"]), "object 2, 'nest': a corner is not two numbers"),
        (corner({"x": 1}), "object 2, 'nest': a corner is not two numbers"),
        (corner([10**400, 2]), "object 2, 'nest': a corner lies on no slide"),
        (feature({"type": "Polygon", "coordinates": SQUARE}), "object 1, 'Tumor': a corner is not two numbers"),
        (feature({"type": "Polygon", "coordinates": [SQUARE[:2]]}), "at least three corners"),
        (feature({"type": "Polygon"}), "object 1, 'Tumor': its Polygon has no list of coordinates"),
        (feature({"type": "Circle", "coordinates": SQUARE}), "its geometry is 'Circle'"),
        (feature("POLYGON ((0 0))"), "object 1, 'Tumor': has no geometry"),
        (feature(properties=[1]), "the properties of object 1 are no list of names and values"),
        ({"type": "Topology", "objects": {}}, "it holds 'Topology'"),
        (collection(feature(), 7), "it holds something else than objects"),
        (b"<?xml version='1.0'?><ASAP_Annotations/>", "it is XML, as ASAP, HALO and ImageScope write it"),
        (b"", "it is empty"),
        (b'{"type": "FeatureCollection", "features": [', "it ends too early"),
        (b'{"type": Feature}', "line 1, column 10 is no JSON"),
        (b'{"name": "T\xfcmor"}', "it is not UTF-8 text"),
        (gzip.compress(json.dumps(feature()).encode(), mtime=0)[:-20], "it is packed, and damaged"),
        (bomb(), "it is larger than 256 MB"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_in_words(tmp_path: Path, content: object, says: str):
    path = tmp_path / "s.geojson"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(RegionsError) as refused:
        read_regions(path)
    assert says in str(refused.value)
    assert not any(word in str(refused.value) for word in ("NoneType", "subscript", "codec", "float()", "inhomogen"))


def test_what_a_mask_passes_over_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps(collection(feature(), feature(POINT))))
    check_mask(Request(mask=path))
    assert capsys.readouterr().err == f"{path}: passed over what is no region: points (1)\n"
    check_mask(Request(mask=path), anonymous=True)
    assert capsys.readouterr().err == "the mask: passed over what is no region: points (1)\n"
    path.write_text(json.dumps(corner([1])))
    with pytest.raises(UsageError, match=r"--mask .*m\.geojson: not a GeoJSON .*object 2, 'nest': a corner"):
        check_mask(Request(mask=path))
