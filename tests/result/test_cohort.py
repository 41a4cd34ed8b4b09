from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from calls import run
from results_to_draw import made_up

from stpredict.result.cohort import FACTS, rows
from stpredict.result.file import read_result
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.regions import read_regions
from stpredict.slides.slide import Bounds, Mpp

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 20.0)


def random_result(name: str, seed: int = 0, n_genes: int = 2, spots: Spots = SPOTS, fingerprint: str = "", **more):
    values = np.random.default_rng(seed).normal(5, 1, (len(spots), n_genes))
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    result = made_up(Path(name), spots, values, **more)
    change(result.path, ("slide", "fingerprint"), fingerprint or f"{seed:064x}")
    return values.astype(np.float32)


def change(path: Path, keys: tuple[str, ...], value: object) -> None:
    with h5py.File(path, "r+") as file:
        account = json.loads(file["uns/stpredict"][()])
        inner = account
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        del file["uns/stpredict"]
        file["uns/stpredict"] = json.dumps(account)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(kind: str, coordinates: list, **properties: object) -> dict:
    return {
        "type": "Feature", "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", **properties},
    }  # fmt: skip


def write_regions(path: str, *features: dict) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


def test_a_slide_is_one_row_of_what_it_holds():
    values = random_result("s.h5ad")
    done = run("summary", "s.h5ad")
    assert done.exit_code == 0, done.output
    (row,) = table(done.stdout)
    assert list(row) == [
        *FACTS,
        *(f"G{i}.{what}" for i in range(2) for what in ("mean", "p5", "p25", "p50", "p75", "p95")),
    ]
    assert row["slide"] == "s"
    assert row["region"] == ""
    assert int(row["spots"]) == len(SPOTS) == 150
    assert float(row["tissue_mm2"]) == pytest.approx(150 * 0.02**2)
    assert (row["model"], float(row["mpp"]), float(row["pitch_um"])) == ("made-up", 0.5, 20.0)
    for i in range(2):
        assert float(row[f"G{i}.mean"]) == pytest.approx(values[:, i].mean(), rel=1e-5)
        for p in (5, 25, 50, 75, 95):
            assert float(row[f"G{i}.p{p}"]) == pytest.approx(np.percentile(values[:, i], p), rel=1e-5)


def test_spots_that_were_not_predicted_are_counted_and_left_out():
    values = np.full((len(SPOTS), 1), 2.0)
    values[:7] = np.nan
    made_up(Path("s.h5ad"), SPOTS, values)
    made_up(Path("none.h5ad"), SPOTS, np.full((len(SPOTS), 1), np.nan))
    change(Path("none.h5ad"), ("slide", "fingerprint"), "1")
    none, some = table(run("summary", ".").stdout)
    assert (some["spots"], some["spots_not_predicted"], some["G0.mean"], some["G0.p5"]) == ("150", "7", "2.0", "2.0")
    assert (none["spots_not_predicted"], none["G0.mean"], none["G0.p50"]) == ("150", "", "")


def test_a_hexagonal_lattice_has_smaller_cells_and_given_positions_none():
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 20.0, "hex")
    random_result("hex.h5ad", spots=spots)
    given = Spots(SPOTS.centres, np.zeros_like(SPOTS.row), np.arange(len(SPOTS)), "given", 20.0)
    random_result("given.h5ad", 1, spots=given)
    of_given, of_hex = table(run("summary", ".").stdout)
    assert float(of_hex["tissue_mm2"]) == pytest.approx(len(spots) * 0.02**2 * np.sqrt(3) / 2, rel=1e-5)
    assert of_given["tissue_mm2"] == ""


def test_regions_with_holes_and_several_parts():
    values = random_result("s.h5ad")
    ring = [square(0, 0, 200), square(40, 40, 80)]
    write_regions(
        "s.geojson",
        feature("Polygon", ring, classification={"name": "Tumor", "color": [200, 0, 0]}),
        feature("MultiPolygon", [[square(410, 0, 80)], [square(410, 210, 80)]], name="nests"),
        feature("Polygon", [square(290, 290, 40)], classification={"name": "Tumor"}),
        feature("Polygon", [square(0, 0, 600)], objectType="cell"),
        feature("Polygon", [square(290, 210, 40)]),
    )
    done = run("summary", "s.h5ad", "--regions", "s.geojson")
    assert done.exit_code == 0, done.output
    found = {row["region"]: row for row in table(done.stdout)}
    assert list(found) == ["", "Tumor", "nests", "unnamed"]

    def inside(x, y, side):
        return ((SPOTS.centres >= (x, y)) & (SPOTS.centres < (x + side, y + side))).all(axis=1)

    expected = {
        "Tumor": inside(0, 0, 200) & ~inside(40, 40, 80) | inside(290, 290, 40),
        "nests": inside(410, 0, 80) | inside(410, 210, 80),
        "unnamed": inside(290, 210, 40),
    }
    for name, spots in expected.items():
        assert int(found[name]["spots"]) == spots.sum() > 0
        assert float(found[name]["G1.mean"]) == pytest.approx(values[spots, 1].mean(), rel=1e-5)
        assert float(found[name]["tissue_mm2"]) == pytest.approx(spots.sum() * 0.02**2, rel=1e-5)
    assert found[""]["unusual_patches"] == "0.0"
    write_regions("s.geojson", feature("Polygon", [square(5000, 5000, 40)], name="elsewhere"))
    off = run("summary", "s.h5ad", "--regions", "s.geojson")
    assert off.exit_code == 0
    assert "s.h5ad: none of its spots lies in the region 'elsewhere'" in off.stderr
    assert found["Tumor"]["unusual_patches"] == ""  # known of the whole slide


def test_a_folder_of_regions_and_slides_without():
    for seed, name in enumerate("ab"):
        random_result(f"{name}.h5ad", seed)
    write_regions("regions/b.geojson", feature("Polygon", [square(0, 0, 100)], name="x"))
    done = run("summary", "a.h5ad", "b.h5ad", "--regions", "regions")
    assert [(row["slide"], row["region"]) for row in table(done.stdout)] == [("a", ""), ("b", ""), ("b", "x")]
    one = run("summary", "a.h5ad", "b.h5ad", "--regions", "regions/b.geojson")
    assert one.exit_code == 2
    assert "belongs to one slide" in one.stderr
    point = {"type": "Point", "coordinates": [1, 2]}
    packed = gzip.compress(json.dumps([{"geometry": point}, feature("Polygon", [square(0, 0, 100)])]).encode())
    Path("regions/a.geojson.gz").write_bytes(packed)
    both = run("summary", "a.h5ad", "b.h5ad", "--regions", "regions")
    assert [row["region"] for row in table(both.stdout)] == ["", "unnamed", "", "x"]
    assert "a.geojson.gz: passed over what is no region: points (1)" in both.stderr
    Path("regions/a.geojson").write_text("{")
    damaged = run("summary", "a.h5ad", "b.h5ad", "--regions", "regions")
    assert damaged.exit_code == 1
    assert [row["slide"] for row in table(damaged.stdout)] == ["b", "b"]
    assert "a.geojson: not a GeoJSON file" in damaged.stderr


def test_regions_from_a_viewer_that_crops_to_the_bounds():
    bounds = Bounds(100, 60, 500, 340)
    spots = lattice(bounds, Mpp(0.5, 0.5), 20.0)
    random_result("s.h5ad", spots=spots, bounds=bounds)
    write_regions("s.geojson", feature("Polygon", [square(0, 0, 80)], name="corner"))
    counts = [
        table(run("summary", "s.h5ad", "--regions", "s.geojson", "--origin", origin).stdout)[1]["spots"]
        for origin in ("slide", "bounds")
    ]
    assert counts == ["0", "4"]


def test_folders_patterns_and_repetitions_give_one_order():
    for seed, name in enumerate(["one/a.h5ad", "one/deeper/c.h5ad", "two/b.h5ad"]):
        random_result(name, seed)
    for arguments in (["one", "two"], ["two", "one/**/*.h5ad"], ["two/b.h5ad", "one", "one/a.h5ad"]):
        done = run("summary", *arguments, "-o", "cohort.csv", "--overwrite")
        assert done.stdout == "cohort.csv\n"
        assert [row["slide"] for row in table(Path("cohort.csv").read_text())] == ["a", "b", "c"]
        Path("one/.a.0123456789abcdef.tmp.h5ad").write_text("half of it")  # as of a prediction that goes on
    refused = run("summary", "one", "-o", "cohort.csv")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("model", "sha256"), "f" * 64, "models differ (made-up made-up and made-up ffffffffffff)"),
        (("expression_unit",), "counts", "units differ (ln(1 + CPM) of the expected share and counts)"),
        (("lattice", "pitch_um"), 30.0, "pitches differ (20 um and 30 um)"),
        (("tta",), "the mean of eight turns", "turns differ (without --tta and with --tta)"),
    ],
)
def test_results_that_do_not_compare_are_not_mixed(keys, value, says):
    random_result("a.h5ad")
    spots = Spots(SPOTS.centres, np.zeros_like(SPOTS.row), np.arange(len(SPOTS)), "given", 20.0)
    random_result("b.h5ad", 1, spots=spots)
    change(Path("b.h5ad"), keys, value)
    done = run("summary", "a.h5ad", "b.h5ad", "-o", "cohort.csv")
    assert done.exit_code == 2
    assert f"a.h5ad and b.h5ad do not belong in one table: their {says}" in done.stderr
    assert not Path("cohort.csv").exists()


def test_a_damaged_result_costs_only_itself():
    random_result("a.h5ad")
    random_result("c.h5ad", 2)
    Path("b.h5ad").write_bytes(Path("a.h5ad").read_bytes()[:9000])
    with h5py.File("c.h5ad", "r+") as file:  # what only shows when the expression is read
        offset = file["X"].id.get_chunk_info(0).byte_offset
    content = bytearray(Path("c.h5ad").read_bytes())
    content[offset : offset + 64] = bytes(64)
    Path("c.h5ad").write_bytes(content)
    shutil.copy("a.h5ad", "again.h5ad")
    done = run("summary", "a.h5ad", "b.h5ad", "c.h5ad", "gone.h5ad", "-o", "cohort.csv")
    assert done.exit_code == 1
    assert "3 of 4 results failed" in done.stderr
    assert [row["slide"] for row in table(Path("cohort.csv").read_text())] == ["a"]
    twice = run("summary", "a.h5ad", "again.h5ad")
    assert twice.exit_code == 1
    assert "again.h5ad: its slide is in the table already, from a.h5ad" in twice.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.h5ad"], "gone.h5ad: no such file"),
        (["empty"], "empty: holds no results"),
        (["*.nothing"], "*.nothing: holds no results"),
        (["a.h5ad", "--regions", "gone.geojson"], "gone.geojson: no such file"),
        (["a.h5ad", "--regions", "empty"], "holds none of the slides' regions (a.geojson)"),
        (["a.h5ad", "--origin", "centre"], "--origin centre: choose from slide, bounds"),
    ],
)
def test_calls_that_cannot_work(arguments, says):
    random_result("a.h5ad")
    Path("empty").mkdir()
    done = run("summary", *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert not done.stdout


def test_the_table_as_json_has_the_numbers_of_the_csv():
    random_result("a.h5ad")
    random_result("b.h5ad", seed=1)
    asked = ("summary", "a.h5ad", "b.h5ad", "--genes", "G1")
    told, written = json.loads(run(*asked, "--json").stdout), table(run(*asked).stdout)
    assert [row["slide"] for row in told] == ["a", "b"]
    assert told[0].keys() == {*FACTS, "genes"}
    assert list(told[0]["genes"]) == ["G1"]
    for row, cells in zip(told, written, strict=True):
        assert row["genes"]["G1"] == {
            name: float(cells[f"G1.{name}"]) for name in ("mean", "p5", "p25", "p50", "p75", "p95")
        }
        assert row["spots"] == int(cells["spots"])
    refused = run(*asked, "--json", "-o", "t.csv")
    assert refused.exit_code == 2
    assert "leave --out" in refused.stderr


def test_no_name_from_a_file_is_a_formula_or_a_second_line():
    genes = ["=HYPERLINK(1)", "@G", "A;=B", "A\nB", "x" * 10_000]
    random_result("s.h5ad", n_genes=len(genes), genes=genes, model="=1+1")
    write_regions("s.geojson", feature("Polygon", [square(0, 0, 99)], name="\ud800=cmd\n+1\0"))
    done = run("summary", "s.h5ad", "--regions", "s.geojson")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 3
    found = table(done.stdout)
    columns = [name for name in found[0] if name.endswith(".mean")]
    assert columns == ["'=HYPERLINK(1).mean", "'@G.mean", "A;=B.mean", "A�B.mean", "x" * 10_000 + ".mean"]
    assert '"A;=B.mean"' in done.stdout  # in quotes, so that no spreadsheet splits it
    assert found[1]["region"] == "�=cmd�+1�"
    assert found[0]["model"] == "'=1+1"


def test_genes_that_only_some_results_hold_are_empty_elsewhere():
    random_result("a.h5ad", genes=["A", "B"])
    random_result("b.h5ad", 1, genes=["C", "A"])
    first, second = table(run("summary", "b.h5ad", "a.h5ad").stdout)
    assert [name for name in first if name.endswith(".mean")] == ["A.mean", "B.mean", "C.mean"]
    assert first["C.mean"] == second["B.mean"] == ""
    assert first["A.mean"] and second["A.mean"]


def test_a_large_result_is_not_held_whole():
    spots = lattice(Bounds(0, 0, 60_000, 40_000), Mpp(0.5, 0.5), 200.0)
    random_result("s.h5ad", n_genes=300, spots=spots, size=(60_000, 40_000))
    whole = len(spots) * 300 * 4
    names = [gene.name for gene in read_result(Path("s.h5ad")).genes]
    tracemalloc.start()
    rows(Path("s.h5ad"), None, names, "slide")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 3


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "7", '"\xff', '{"type": "FeatureCollection", "features": 7}', "[" * 99_999,
        json.dumps([feature("Point", [1, 2])]), json.dumps([feature("Polygon", [[[0, 0], [1, 1]]])]),
        json.dumps([feature("Polygon", [[[0, 0], [1, 1], [float("nan"), 2]]])]), json.dumps([feature("Polygon", [])]),
        json.dumps([feature("Polygon", [[[0, 0], [1, 1], [10**400, 2]]])]), json.dumps([feature("Polygon", [["a"]])]),
        json.dumps([{"geometry": None}]),
    ],
)  # fmt: skip
def test_regions_that_cannot_be_are_one_sentence(content):
    random_result("s.h5ad")
    Path("s.geojson").write_text(content, encoding="latin-1")
    done = run("summary", "s.h5ad", "--regions", "s.geojson")
    assert done.exit_code == 2
    assert "s.geojson: " in done.stderr
    assert "unexpected" not in done.stderr
    assert not table(done.stdout)


def test_older_exports_are_a_list_and_one_object_is_enough():
    one = feature("Polygon", [square(0, 0, 9)], name="a")
    for content in ([one], one):
        Path("s.geojson").write_text(json.dumps(content))
        assert list(read_regions(Path("s.geojson"))) == ["a"]
