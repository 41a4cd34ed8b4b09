"""Systems are compared on the same parts, genes, spots and seeds; one that fails costs its row, and calls go on."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import pytest
from calls import run
from lxml import html
from patch_networks import PATCH_PX, TINY

from stpredict.comparison.papers import REPORTED
from stpredict.comparison.preparation import Prepared
from stpredict.comparison.request import Comparison
from stpredict.comparison.summary import about_leaks
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.networks import ARCHITECTURES, check_architecture
from stpredict.networks.options import base_name
from stpredict.prediction.leases import take_lease
from stpredict.training.folds import Fold
from stpredict.training.panels import Panel
from stpredict.training.settings import Settings

OPTIONS = "--epochs 1 --teach-patches 12 --batch-size 16 --balance sections --threads 1 --min-depth 1 --panel-size 6"


@pytest.fixture(scope="module", autouse=True)
def tiny_stnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "stnet", TINY["stnet"])
        yield


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "small.tiles.h5"
    sections = [section for section in read_dataset(dataset) if section.name != "A2"]
    write_tiles(sections, path, patch_px=PATCH_PX, mpp=2, unlabelled=12, threads=1, report=print)
    return path


def compare(tiles: Path, out: Path, systems: str, *more: object):
    return run("compare", tiles, "--arch", systems, "-o", out, *OPTIONS.split(), *more)


@pytest.fixture(scope="module")
def compared(tiles: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    """Two systems that can be trained on a tiles file and one that cannot; returns what was printed and the folder."""
    request.getfixturevalue("few_windows")
    out = tmp_path_factory.mktemp("compared") / "all"
    return compare(tiles, out, "dictionary,stnet,triplex", "--seeds", 2), out


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "systems.csv").open(newline="") as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_a_system_that_fails_costs_its_row_only(compared):
    done, out = compared
    assert done.exit_code == 1, done.output
    rows = rows_of(out)
    assert "looks at the slides around the spots" in rows["triplex"]["reason"]
    assert rows["triplex"]["depth_controlled"] == ""
    for name in ("dictionary", "stnet", "ridge on colour and texture", "k nearest neighbours", "depth (true)"):
        assert -1 <= float(rows[name]["depth_controlled"]) <= 1
        assert rows[name]["reason"] == ""
    assert rows["training mean"]["depth_controlled"] == ""
    assert float(rows["training mean"]["log_cpm_rmse"]) > 0


def test_a_recipe_asks_for_no_other_option_and_refuses_those_that_it_sets(tmp_path: Path):
    call = ("compare", tmp_path / "nowhere", "--arch", "stnet", "--recipe", "published", "-o", tmp_path / "compared")
    plain = run(*call)
    assert (plain.exit_code, "has its own" in plain.output) == (2, False)
    assert "nowhere" in plain.output
    for option, value in (("--batch-size", 24), ("--teach-patches", 100), ("--learning-rate", 0.01)):
        assert f"{option}: --recipe published has its own." in run(*call, option, value).output


def test_the_file_of_its_options_repeats_the_call(compared):
    done, out = compared
    written = tomllib.loads((out / "config.toml").read_text())
    assert (written["arch"], written["seeds"], written["panel-size"]) == (["dictionary,stnet,triplex"], 2, 6)
    before = rows_of(out)
    again = run("compare", "--config", out / "config.toml")
    assert again.exit_code == done.exit_code
    assert rows_of(out) == before


def test_costs_and_seeds_are_told(compared):
    rows = rows_of(compared[1])
    assert (rows["stnet"]["seeds"], rows["stnet"]["epochs"], rows["dictionary"]["epochs"]) == ("2", "1", "-")
    assert float(rows["stnet"]["between_seeds"]) > 0
    assert float(rows["stnet"]["spots_per_second"]) > 0
    assert float(rows["stnet"]["parameters"]) > 0
    assert float(rows["stnet"]["multiplications"]) > 0


def test_all_systems_have_the_same_genes_and_spots(compared):
    out = compared[1]
    scores = [json.loads(path.read_text()) for path in sorted((out / "jobs").rglob("scores.json"))]
    assert {one["fold"] for one in scores} == {"A", "B"}
    for fold in ("A", "B"):
        own = [one for one in scores if one["fold"] == fold]
        assert len(own) == 5  # the baselines, and two systems with two seeds
        assert len({tuple(one["genes"]) for one in own}) == 1
        assert len({one["spots"] for one in own}) == 1
    balance = {one["settings"]["architecture"]: one["settings"]["balance"] for one in scores if "settings" in one}
    assert balance == {"dictionary": None, "stnet": "sections"}  # the former is fitted at once
    assert not list(out.rglob("*.pt"))


def test_page_and_terminal_say_what_the_table_says(compared):
    done, out = compared
    tree = html.fromstring((out / "comparison.html").read_text())
    assert "triplex: looks at" not in done.stdout.splitlines()[0]
    body = {row.findtext("th"): [cell.text for cell in row.findall("td")] for row in tree.xpath("//tbody/tr[th]")}
    stnet = float(rows_of(out)["stnet"]["depth_controlled"])
    assert body["stnet"][0] == f"{stnet:.3f}"
    assert f"{stnet:.3f}" in done.stdout
    assert "1 epochs at most, sections counting alike" in done.stdout
    (why,) = tree.xpath("//tr[th='triplex']/following-sibling::tr[1][@class='why']/td")
    assert "looks at the slides around the spots" in why.text
    assert "triplex" in tree.get_element_by_id("warnings").text_content()
    names = [node.text for node in tree.xpath("//div[@class='spread']/span[@class='name ours']")]
    assert sorted(names) == ["dictionary", "stnet"]


def test_a_call_goes_on_with_what_is_done(compared, tiles: Path):
    out = compared[1]
    before = {path: path.read_bytes() for path in (out / "jobs").rglob("scores.json")}
    (out / "jobs/stnet/part-1-seed-0/scores.json").unlink()
    done = compare(tiles, out, "stnet", "--seeds", 1)
    assert done.exit_code == 0, done.output
    after = {path: path.read_bytes() for path in before}
    changed = [path.parent.parent.name for path, content in before.items() if after[path] != content]
    assert changed in ([], ["stnet"])
    assert list(rows_of(out))[-1] == "stnet"
    row = [json.loads(content)["row"] for content in (before[out / "jobs/stnet/part-1-seed-0/scores.json"],
                                                      after[out / "jobs/stnet/part-1-seed-0/scores.json"])]  # fmt: skip
    assert row[0] == row[1]


def test_other_settings_need_another_folder(compared, tiles: Path):
    done = compare(tiles, compared[1], "stnet", "--objective", "mse")
    assert done.exit_code == 1
    assert "other settings (objective residuals instead of mse)" in done.output


def test_a_job_that_another_call_is_at_is_left_to_it(compared, tiles: Path, tmp_path: Path):
    held = compared[1] / "jobs/dictionary/part-2-seed-0.lease"
    (held.with_suffix("") / "scores.json").rename(tmp_path / "scores.json")
    lease = take_lease(held)
    try:
        done = compare(tiles, compared[1], "dictionary", "--seeds", 1)
        assert done.exit_code == 0, done.output
        assert "other calls run 1 of 4 jobs" in done.output
        assert "not done yet" in rows_of(compared[1])["dictionary"]["reason"]
    finally:
        lease.release()
        (tmp_path / "scores.json").rename(held.with_suffix("") / "scores.json")


def test_a_protocol_prints_the_papers_numbers(tiles: Path, tmp_path: Path):
    done = compare(tiles, tmp_path, "stnet", "--protocol", "m2ort", "--seeds", 1)
    assert done.exit_code == 0, done.output
    (reported,) = [line.split() for line in done.stdout.splitlines() if line.startswith("stnet ") and "47.78" in line]
    assert reported == ["stnet", "47.78", "3.16", "43.01", "3.07", "49.37", "3.58"]
    page = html.fromstring((tmp_path / "comparison.html").read_text())
    assert "reported: tables 2 to 7 of the M2ORT paper" in page.get_element_by_id("scores").text_content()


def test_systems_that_papers_report_are_systems():
    for protocol, paper in REPORTED.items():
        for system, numbers in paper.rows.items():
            if base_name(system) in ARCHITECTURES:
                check_architecture(system)
            assert len(numbers) == len(paper.data_sets) * len(paper.scores), (protocol, system)


@pytest.mark.parametrize(("protocol", "said"), [("m2ort", "passes the published networks"), (None, "held out: A1")])
def test_what_leaks_is_said(tiles: Path, tmp_path: Path, protocol: str | None, said: str):
    request = Comparison(tiles, tmp_path, ["stnet"], 1, Settings(), Panel(), "section", protocol=protocol)
    (leak,) = about_leaks(Prepared(request, [Fold("A1", "section", ["A1"]), Fold("B", "patient", ["B1"])]))
    assert leak.startswith("LEAK")
    assert said in leak
    assert list(about_leaks(Prepared(request, [Fold("B", "patient", ["B1"])]))) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--folds", "none"), "nothing is held out"),
        (("--arch", "encoder"), "a comparison takes no --encoder"),
        (("--encoder-weights", "stnet"), "give ARCH=FILE"),
        (("--encoder-weights", f"vit-b16={__file__}"), "is not compared"),
        (("--protocol", "m2ort", "--folds", "section"), "leave --folds out"),
        (("--cluster", ""), "--cluster names no address"),
    ],
)
def test_wrong_calls_are_refused(tiles: Path, tmp_path: Path, more: tuple[str, ...], said: str):
    done = compare(tiles, tmp_path / "out", "stnet", *more)
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_an_unknown_system_is_named_before_anything_is_done(tiles: Path, tmp_path: Path):
    done = compare(tiles, tmp_path / "out", "dictionary,resnet5")
    assert done.exit_code == 2
    assert "--arch resnet5" in done.output
    assert not (tmp_path / "out").exists()
