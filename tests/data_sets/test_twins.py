from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import write_section
from scipy.sparse import csr_array
from test_assessment import made_up

from stpredict.data.counts import in_memory
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.section import Section
from stpredict.data.tiles import Measured, measured_in, read_tiles
from stpredict.data.twins import Twins, find_twins, tied_patients, told_twins, with_twins
from stpredict.errors import UsageError
from stpredict.evaluation.assessment import unseen
from stpredict.evaluation.measured import measure
from stpredict.evaluation.scores import plan_splits
from stpredict.slides.slide import Mpp
from stpredict.training.folds import choose_validation, plan_folds
from stpredict.training.protocols import m2ort_folds

N_SPOTS, N_GENES = 40, 30


def section(name: str, patient: str, seed: int, image: Path = Path(), rate: float = 20.0) -> Section:
    rng = np.random.default_rng(seed)
    counts = csr_array(rng.poisson(rate, (N_SPOTS, N_GENES)).astype(np.float32))
    centres = rng.uniform(0, 10_000, (N_SPOTS, 2))
    spots = [f"{i}" for i in range(N_SPOTS)]
    return Section(
        name, patient, image, Mpp(0.5, 0.5), spots, centres, [f"G{i}" for i in range(N_GENES)], in_memory(counts)
    )


def names(twins: tuple[Twins, ...]) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in twins]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one,
        lambda one: replace(one, counts=in_memory(one.counts.rows()[::-1])),
        lambda one: replace(one, genes=[f"ENSG{i:011d}" for i in range(N_GENES)]),
        lambda one: replace(one, counts=in_memory(one.counts.rows()[: N_SPOTS - 9])),
        lambda one: replace(one, counts=in_memory(one.counts.rows()[:, np.random.default_rng(1).permutation(N_GENES)])),
    ],
)
def test_equal_counts_are_found_in_any_order_and_with_some_spots_left_out(change):
    first, other = section("A1", "P1", 1), section("B1", "P2", 2)
    again = replace(change(first), name="C1", patient="P3")
    assert names(find_twins([again, other, first])) == [("A1", "C1")]


def test_sections_that_are_alike_are_not_one():
    many = [section(f"S{i}", f"P{i}", i) for i in range(30)] + [section("thin", "P", 0, rate=0.02)]
    assert find_twins(many) == ()
    empty = replace(many[0], counts=in_memory(np.zeros((N_SPOTS, N_GENES), np.float32)))
    assert find_twins([empty, replace(empty, name="other")]) == ()


def test_equal_images_are_one_where_spots_lie_at_the_same_places(tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 99)
    (tmp_path / "c.jpg").write_bytes(bytes(range(255, -1, -1)) * 99)
    first, other = section("A1", "P1", 1, tmp_path / "a.jpg"), section("B1", "P2", 2, tmp_path / "b.jpg")
    there = replace(other, centres=first.centres + 3)
    assert [(pair.first, pair.second, pair.why) for pair in find_twins([first, there])] == [
        ("A1", "B1", "equal images")
    ]
    elsewhere = replace(other, centres=first.centres + 20_000)  # two sections on one slide
    assert find_twins([first, elsewhere]) == ()
    assert find_twins([first, replace(there, image=tmp_path / "c.jpg")]) == ()


def measured() -> Measured:
    """Two patients who share the section A1 = B1, and two others; A2 and A3 are one and of one patient."""
    sections = [section(name, name[0], seed) for seed, name in enumerate(("A1", "A2", "A4", "B2", "C1", "C2", "D1"))]
    sections += [replace(sections[0], name="B1", patient="B"), replace(sections[1], name="A3")]
    return measured_in(sorted(sections, key=lambda one: one.name), ())


def test_patients_who_share_a_section_are_held_out_together():
    found = measured()
    assert names(found.twins) == [("A1", "B1"), ("A2", "A3")]
    both = ["A1", "A2", "A3", "A4", "B1", "B2"]
    folds = plan_folds(found, "patient")
    assert [(fold.name, fold.kind, fold.test_sections) for fold in folds] == [
        ("A+B", "patient", both), ("C", "patient", ["C1", "C2"]), ("D", "patient", ["D1"]),
    ]  # fmt: skip
    for name in ("A", "B"):
        (fold,) = plan_folds(found, "none", [name])
        assert (fold.name, fold.test_sections) == ("A+B", both)
    assert [fold.test_sections for fold in plan_folds(found, "2")] in ([both, ["C1", "C2", "D1"]],)
    with pytest.raises(UsageError, match="number of patients, which is 3"):
        plan_folds(found, "4")


def test_no_split_has_a_section_on_both_sides():
    found = measured()
    everything = sorted(set(found.section))
    by_section = {fold.name: fold for fold in plan_folds(found, "section", ["A1", "A3"])}
    assert by_section["A1+B1"].test_sections == ["A1", "B1"]
    assert by_section["A1+B1"].kind == "section"
    assert by_section["A2+A3"].test_sections == ["A2", "A3"]
    assert len(by_section) == 7
    for seed in range(20):
        (fold,) = m2ort_folds(found, seed)
        for pair in found.twins:
            sides = [side for side in (fold.test_sections, fold.train, fold.validation) if pair.first in side]
            assert sides == [side for side in (fold.test_sections, fold.train, fold.validation) if pair.second in side]
    for sections in (everything, both := ["A1", "A2", "A3", "A4"], ["A2", "A3"], ["A1", "A4", "B1"]):
        chosen = choose_validation(found, sections)
        rest = set(sections) - set(chosen)
        assert not set(with_twins(chosen, found.twins)) & rest
        assert rest
    assert choose_validation(found, both) == ["A4"]


def test_tied_labels_and_what_is_told():
    pairs = [Twins("S1", "S2", "equal counts"), Twins("S2", "S3", "equal images")]
    labels = tied_patients(np.array(["S1", "S2", "S3", "S4"]), np.array(["P1", "P2", "P3", "P4"]), pairs)
    assert labels.tolist() == ["P1+P2+P3"] * 3 + ["P4"]
    assert told_twins(pairs * 4)[0].startswith("S1 and S2 have equal counts, so they count as one patient's")
    assert told_twins(pairs * 4)[-1] == "3 more pairs of sections are one each"


def test_tiles_know_what_is_there_twice(tmp_path: Path, region: np.ndarray):
    write_section(tmp_path, "A1", region, 0)
    write_section(tmp_path, "B1", region, 0)
    write_section(tmp_path, "C1", np.ascontiguousarray(region[::-1]), 1)
    sections = read_dataset(tmp_path)
    write_tiles(sections, tmp_path / "d.tiles.h5", patch_px=32, report=lambda _: None)
    tiles = read_tiles(tmp_path / "d.tiles.h5")
    assert tiles.twins == measured_in(sections, ()).twins
    assert names(tiles.twins) == [("A1", "B1")]
    assert sorted(set(tiles.kin)) == ["A+B", "C"]


def test_a_model_that_saw_a_section_is_not_scored_on_it_under_another_name():
    found = measured()
    card = {"training": {"patients": ["A"]}}
    scored, notes = unseen("m", card, found, np.arange(len(found.section)), False)
    assert set(found.patient[scored]) == {"C", "D"}
    assert notes == ["not scored, as the model was trained on patients of these names: A, B"]


def test_train_tells_of_them_and_refuses_to_part_them(tmp_path: Path, region: np.ndarray):
    for name, seed in (("A1", 0), ("A2", 1), ("B1", 0), ("C1", 2)):
        write_section(tmp_path, name, region[9 * seed : 2000 + 9 * seed, :2000], seed)
    done = run("train", tmp_path, "-o", tmp_path / "m.safetensors", "--folds", "none", "--hold-out", "B1")
    assert done.exit_code == 2, done.output
    assert "A1 and B1 have equal counts, so they count as one patient's and are held out together" in done.stderr
    assert "holding out section A1+B1 trains on the same patient" in done.stderr


def test_baselines_of_a_section_do_not_learn_from_it_under_another_name():
    tiles, predicted, _ = made_up(3, truth=True)
    again = replace(tiles, patient=np.full(len(tiles.spot), "P"), twins=(Twins("P0s", "P1s", "equal counts"),))
    known = measure(again, predicted, predicted.index)
    assert sorted(set(known.part)) == ["P0s+P1s", "P2s"]
    every = np.ones(len(tiles.spot), np.bool_)
    splits, by = plan_splits(known, every, leak=False)
    assert by == "sections"
    learnt = {tuple(np.unique(one.section[one.test])): set(one.section[one.train]) for one in splits}
    assert learnt == {("P0s", "P1s"): {"P2s"}, ("P2s",): {"P0s", "P1s"}}
