from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from calls import run
from patch_networks import PATCH_PX

from stpredict.data.tiles import Measured
from stpredict.training import plan
from stpredict.training.folds import Fold
from stpredict.training.plan import DENSE, FEATURES, kept_on_disk, peak_memory
from stpredict.training.preparation import Checked
from stpredict.training.settings import Settings, TrainingRequest

OPTIONS = (
    "--arch m2ort-tiny --teach ridge --epochs 2 --unlabelled 40 --teach-patches 60 --batch-size 16 --threads 1 "
    "--min-depth 1"
)


pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(autouse=True)
def measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MEASURE_S", 0.05)


def call(dataset: Path, out: Path, *more: str):
    return run("train", str(dataset), "-o", str(out), *OPTIONS.split(), *more)


def test_what_a_dry_run_says_comes_true_and_it_writes_nothing(small_dataset: Path, tmp_path: Path):
    out = tmp_path / "deep" / "mine.safetensors"
    planned = call(small_dataset, out, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not list(tmp_path.iterdir())
    lines = planned.stdout.splitlines()
    assert lines[0].startswith("3 sections of 2 patients, 72 spots")
    n_bytes = (72 + 39) * PATCH_PX**2 * 3
    cut = f"patches of {PATCH_PX} px, of 72 spots and 39 unlabelled places"
    assert lines[2] == f"{cut}: {n_bytes / 1e6:,.0f} MB of disk"
    assert re.search(r"^memory: about [\d.]+ GiB, and [\d.]+ GiB for the network and a batch$", planned.stdout, re.M)
    parts = {line.partition(":")[0]: line for line in lines if line.startswith(("fold-", "all"))}
    assert list(parts) == ["fold-1", "fold-2", "all"]
    assert "holds out A1, A2" in parts["fold-1"]
    assert "of which A2 chooses" in parts["fold-2"]
    assert re.search(r"at [\d.]+ a second on cpu: about \d+:\d\d:\d\d of training", lines[-1])

    trained = call(small_dataset, out)
    assert trained.exit_code == 0, trained.output
    panel = re.search(r"panel: (\d+) genes", lines[1])
    assert panel is not None
    assert f"panel: {panel[1]} genes, measured in all 3 sections" in trained.stderr
    for part, line in parts.items():
        told = re.findall(r"(teach|select|train) (\d+) x (\d+)", line.partition("epochs x steps: ")[2])
        assert {"teach", "train"} <= {stage for stage, _, _ in told}
        for stage, epochs, steps in told:
            kept = torch.load(out.with_suffix(".run") / part / f"{stage}.pt", weights_only=True)
            assert kept["schedule"]["last_epoch"] == kept["epoch"] * int(steps)
            assert kept["epoch"] <= int(epochs) if stage == "train" else kept["epoch"] == int(epochs)
    again = call(small_dataset, out, "--dry-run")
    assert again.stdout.strip() == f"{out}: up to date"


def test_a_dry_run_of_what_is_fitted_at_once_has_no_steps(small_dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    planned = run("train", small_dataset, "-o", out, "--arch", "dictionary", "--min-depth", "1", "--dry-run",
                  "--folds", "none", "--genes-required", "GNAS")  # fmt: skip
    assert planned.exit_code == 0, planned.output
    assert "step" not in planned.stdout
    assert "a second" not in planned.stdout
    assert planned.stdout.splitlines()[-2] == "all: trains on 3 sections, 72 spots"
    assert re.fullmatch(r"memory: about 0\.[5-7] GiB", planned.stdout.splitlines()[-1])


@pytest.mark.parametrize("wrong", [["--hold-out", "Z9"], ["--folds", "9"], ["--only", "fold-7"], ["--arch", "m3ort"]])
def test_what_would_be_refused_is_refused(small_dataset: Path, tmp_path: Path, wrong: list[str]):
    refused = call(small_dataset, tmp_path / "mine.safetensors", *wrong, "--dry-run")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    really = call(small_dataset, tmp_path / "mine.safetensors", *wrong)
    assert really.stderr == refused.stderr


def test_many_spots_take_memory_for_those_that_are_tested_and_taught():
    def memory(n_spots: int, settings: Settings) -> int:
        section = np.repeat(np.array(["A", "B", "C", "D"], dtype=object), n_spots // 4)
        counts = SimpleNamespace(n_entries=1000)
        found = Measured(section, section, np.ones(n_spots), ["G"], ["G"])
        folds = [Fold("A", "patient", ["A"])]
        checked = SimpleNamespace(found=found, folds=folds, sections=[SimpleNamespace(counts=counts)], more=[])
        request = SimpleNamespace(settings=settings)
        return peak_memory(cast(Checked, checked), cast(TrainingRequest, request), 700)

    of_linear = Settings("dictionary", head="linear")
    few, many, more = (memory(n, Settings("dictionary")) for n in (4000, 200_000, 400_000))
    assert few < 800 << 20 < many
    # A further spot is held where it is tested, in a quarter of all, and else nowhere.
    assert more - many == 50_000 * 700 * DENSE
    # A network that is trained keeps its targets on disk, a linear head is fitted to features in memory.
    trained, linear = (memory(400_000, settings) for settings in (Settings("m2ort-small"), of_linear))
    assert trained < more
    assert linear - trained == 400_000 * FEATURES


def test_targets_of_many_spots_are_kept_on_disk_if_they_are_read_again_and_again():
    linear = Settings("dictionary", head="linear")
    for settings, tables in (
        (Settings("m2ort-small"), 1), (linear, 1), (Settings("bleep"), 2), (Settings("egn"), 1),
        (Settings("dictionary"), 0), (Settings("dictionary", objective="mse"), 0),
    ):  # fmt: skip
        assert kept_on_disk(settings, 400_000, 700) == tables * 400_000 * 700 * 4
    assert kept_on_disk(linear, 4000, 70_000) == kept_on_disk(linear, 5000, 700) == 0
