"""Whether other programs see the right pixels at the right places in the pictures of a result.

    python tests/rendering/validate.py RESULT.h5ad PICTURE...

Each picture is decoded by every reader that is there: OpenSlide, tifffile, ome-types, Bio-Formats (Java, and the jar
that BIOFORMATS_JAR names), viv's loader (Node, and the folder with node_modules that VIV_MODULES names). What they see
is compared with what is worked out here by brute force from the result and the JSON beside the picture.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from expected import NO_SPOT, Ground, Picture, spot_size
from readers import Job, Seen, read_bioformats, read_ome_types, read_openslide, read_tifffile, read_viv

from stpredict.rendering.channels import CHANNEL_COLOURS
from stpredict.result.file import Result, read_result


@dataclass(frozen=True)
class Check:
    picture: str
    reader: str
    what: str
    passed: bool
    detail: str = ""

    def __str__(self) -> str:
        word = "ok" if self.passed else "FAILED"
        return f"{word:6}  {self.picture}  {self.reader}: {self.what}  {self.detail}".rstrip()


def check_tiffs(
    pictures: Sequence[Picture], reader: str, read: Callable[[Sequence[Job]], list[Seen]]
) -> Iterator[Check]:
    """All that a reader says of TIFFs against what it should say."""
    try:
        seen = read([Job(picture.path, picture.asked) for picture in pictures])
    except Exception as error:  # noqa: BLE001 - whatever stops a reader is what this is to find
        names = ", ".join(picture.path.name for picture in pictures)
        yield Check(names, reader, "reads it", False, f"{type(error).__name__}: {error}")
        return
    for picture, one in zip(pictures, seen, strict=True):
        yield from check_seen(picture, reader, one)


def check_seen(picture: Picture, reader: str, seen: Seen) -> Iterator[Check]:
    def check(what: str, passed: bool, detail: object = "") -> Check:
        return Check(picture.path.name, reader, what, bool(passed), str(detail))

    channels = picture.style == "channels"
    # Bio-Formats sees levels only in SubIFDs of OME-TIFFs; ome-types sees no levels at all.
    levels = 1 if reader == "ome-types" or (reader == "Bio-Formats" and not channels) else len(picture.sizes)
    yield check("sizes of levels", seen.sizes == picture.sizes[:levels], f"{seen.sizes}, {picture.sizes[:levels]}")
    yield check("um per pixel", np.allclose(seen.mpp, picture.mpp, rtol=1e-6, atol=0), f"{seen.mpp}, {picture.mpp}")
    yield check("type of pixels", seen.dtype == ("float32" if channels else "uint8"), seen.dtype)
    if seen.names is not None:
        yield check("names of channels", seen.names == picture.genes, seen.names)
    if seen.colours is not None:
        colours = [CHANNEL_COLOURS[i % len(CHANNEL_COLOURS)] << 8 | 0xFF for i in range(len(picture.genes))]
        yield check("colours of channels", seen.colours == colours, [f"{colour:08x}" for colour in seen.colours])
    for what, passed, detail in seen.more:
        yield check(what, passed, detail)
    for level, values in enumerate(seen.pixels):
        wrong, right, told = picture.compare(level, values)
        what = "windows" if picture.style == "overlay" else "pixels"
        yield check(f"{what} of level {level}", right and not wrong, f"{right} right, {wrong} wrong; {told}")


def check_geojson(picture: Picture) -> Iterator[Check]:
    """What QuPath demands of objects that it imports, and that each lies around its spot."""
    result = picture.result
    spots = result.spots

    def check(what: str, passed: bool, detail: object = "") -> Check:
        return Check(picture.path.name, "GeoJSON", what, bool(passed), str(detail))

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    data = picture.path.read_bytes()
    try:
        text = (gzip.decompress(data) if picture.suffix.endswith(".gz") else data).decode("utf-8")
        collection = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        yield check("is JSON", False, error)
        return
    features = collection["features"]
    yield check("a collection of features", collection["type"] == "FeatureCollection")
    yield check("one for each spot", len(features) == len(spots), len(features))
    identifiers = {str(uuid.UUID(feature["id"])) for feature in features}
    yield check("identifiers of their own", len(identifiers) == len(features))
    properties = [feature["properties"] for feature in features]
    kinds = {(feature["type"], kind["objectType"]) for feature, kind in zip(features, properties, strict=True)}
    yield check("detections", kinds == {("Feature", "detection")}, kinds)
    coloured = [p for p in properties if isinstance(p.get("classification"), dict)]
    yield check("classes have colours", all("color" in p["classification"] for p in coloured))
    yield check("locked", all(p["isLocked"] is True for p in properties))
    yield check("names", [p["name"] for p in properties] == spot_names(result))
    rings = [np.array(feature["geometry"]["coordinates"][0]) for feature in features]
    yield check("polygons of one ring", all(
        feature["geometry"]["type"] == "Polygon" and len(feature["geometry"]["coordinates"]) == 1
        for feature in features
    ))  # fmt: skip
    yield check("closed rings", all(len(ring) >= 4 and (ring[0] == ring[-1]).all() for ring in rings))
    ellipses = {feature["geometry"].get("isEllipse", False) for feature in features}
    yield check("circles if given", ellipses == {spots.layout == "given"}, ellipses)
    middles = np.array([(ring.min(axis=0) + ring.max(axis=0)) / 2 for ring in rings])
    off = np.abs(middles - (spots.centres - picture.origin)).max()
    yield check("around their spots", off <= 0.011, f"{off:.3g} px off")
    extents = np.array([np.ptp(ring, axis=0) for ring in rings])
    off = np.abs(extents - spot_size(result)).max()
    yield check("as large as their spots", off <= 0.021, f"{off:.3g} px off")
    for gene in picture.genes:
        values = result.expression(gene)
        shown = [p["measurements"].get(gene, math.nan) for p in properties]
        right = np.allclose(shown, values, rtol=0, atol=5.1e-5, equal_nan=True)
        yield check(f"values of {gene}", right and not any(value is None for value in shown))
    known = {key for p in properties for key in p["measurements"]}
    yield check("nothing else measured", known <= {*picture.genes, *result.quality})


def check_csv(picture: Picture) -> Iterator[Check]:
    """That each line tells its spot's place and values."""
    result = picture.result
    spots, mpp = result.spots, np.array(result.canvas.mpp)
    with picture.path.open(newline="", encoding="utf-8-sig") as file:
        header, *lines = list(csv.reader(file))

    def check(what: str, passed: bool, detail: object = "") -> Check:
        return Check(picture.path.name, "CSV", what, bool(passed), str(detail))

    places = ["spot", "row", "col", "x_px", "y_px", "x_um", "y_um", "tissue_fraction"]
    columns = [*places, *result.quality, *picture.genes]
    # a leading apostrophe keeps spreadsheets from taking a name for a formula
    yield check("header", [cell.removeprefix("'") for cell in header] == columns, header)
    yield check("a line for each spot", len(lines) == len(spots), len(lines))
    yield check("names", [line[0].removeprefix("'") for line in lines] == spot_names(result))
    numbers = np.array([line[1:] for line in lines], dtype=float)
    yield check("rows and columns", (numbers[:, :2] == np.column_stack([spots.row, spots.column])).all())
    px = spots.centres - picture.origin
    yield check("places", np.allclose(numbers[:, 2:4], px, rtol=0, atol=0.0051))
    yield check("places in um", np.allclose(numbers[:, 4:6], px * mpp, rtol=0, atol=0.0051))
    yield check("tissue", np.allclose(numbers[:, 6], result.tissue_fraction, rtol=0, atol=5.1e-4))
    of_quality, of_genes = np.split(numbers[:, 7:].T, [len(result.quality)])
    for what, column in zip(result.quality, of_quality, strict=True):
        yield check(what, np.allclose(column, result.quality[what], rtol=0, atol=5.1e-4))
    for gene, column in zip(picture.genes, of_genes, strict=True):
        right = np.allclose(column, result.expression(gene), rtol=0, atol=5.1e-5, equal_nan=True)
        yield check(f"values of {gene}", right)


def spot_names(result: Result) -> list[str]:
    spots = result.spots
    if spots.layout == "given":
        return [f"{result.name}:s{i}" for i in range(len(spots))]
    return [f"{result.name}:r{row}c{column}" for row, column in zip(spots.row, spots.column, strict=True)]


def check_lattice(ground: Ground) -> Check:
    """That centres lie where pitch, bounds and mpp put them, on which all else rests."""
    result = ground.result
    centres, spot = ground.lattice
    found = spot != NO_SPOT
    off = np.abs(centres[found] - result.spots.centres[spot[found]]).max(initial=0)
    passed = found.sum() == len(result.spots) and off < 1e-6
    return Check(result.path.name, "lattice", "spots lie on it", bool(passed), f"{off:.3g} px off")


RGB_STYLES, ALL_TIFFS = ("heatmap", "overlay", "pca"), ("heatmap", "overlay", "pca", "channels")
Checker = Callable[[Sequence[Picture]], Iterator[Check]]


def _each(check: Callable[[Picture], Iterator[Check]]) -> Checker:
    return lambda pictures: (found for picture in pictures for found in check(picture))


def _tiffs(reader: str, read: Callable[[Job], Seen]) -> Checker:
    return _each(lambda picture: check_tiffs([picture], reader, lambda jobs: [read(job) for job in jobs]))


#: The styles that each reader is for, and how it checks pictures of these.
READERS: dict[str, tuple[Sequence[str], Checker]] = {
    "OpenSlide": (RGB_STYLES, _tiffs("OpenSlide", read_openslide)),
    "tifffile": (ALL_TIFFS, _tiffs("tifffile", read_tifffile)),
    "Bio-Formats": (ALL_TIFFS, lambda pictures: check_tiffs(pictures, "Bio-Formats", read_bioformats)),
    "ome-types": (("channels",), _tiffs("ome-types", read_ome_types)),
    "viv": (("channels",), lambda pictures: check_tiffs(pictures, "viv", read_viv)),
    "GeoJSON": (("spots",), _each(check_geojson)),
    "CSV": (("expression",), _each(check_csv)),
}


@cache
def why_absent(reader: str) -> str:
    """Why a reader cannot be used here; empty if it can."""
    if reader == "Bio-Formats":
        if not Path(os.environ.get("BIOFORMATS_JAR", "none")).is_file():
            return "BIOFORMATS_JAR names no jar"
        return "" if shutil.which("java") else "no java"
    if reader == "viv":
        if not (Path(os.environ.get("VIV_MODULES", "none")) / "node_modules" / "@vivjs" / "loaders").is_dir():
            return "VIV_MODULES names no folder with node_modules/@vivjs/loaders"
        return "" if shutil.which("node") else "no node"
    if reader == "ome-types":
        needed = ("ome_types", "lxml")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        return f"no {' and no '.join(missing)}" if missing else ""
    return ""


def look(pictures: Sequence[Picture], reader: str) -> Iterator[Check]:
    """All checks with a reader of those pictures that it is for."""
    styles, check = READERS[reader]
    fitting = [picture for picture in pictures if picture.style in styles]
    if fitting:
        yield from check(fitting)


def validate(result: Path, paths: Sequence[Path]) -> Iterator[Check]:
    """Check pictures of a result with those readers that are there."""
    ground = Ground(read_result(result))
    if ground.result.spots.layout != "given":
        yield check_lattice(ground)
    pictures = [Picture(ground, path) for path in paths]
    for reader in READERS:
        if not why_absent(reader):
            yield from look(pictures, reader)


def main(result: str, *pictures: str) -> int:
    failed = 0
    for reader in READERS:
        if why_absent(reader):
            print(f"absent  {reader}: {why_absent(reader)}")
    for check in validate(Path(result), [Path(picture) for picture in pictures]):
        print(check)
        failed += not check.passed
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
