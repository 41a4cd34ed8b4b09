"""Kills, little memory, full disks and many slides, for short; `benchmarks/reliability.py` goes on for long."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from calls import LIGHT
from conftest import SLIDE
from endurance import CannotTryError, cut_slides, fill_disk, kill_at_random, small_disk, starve
from soak import early_and_late, soak

from stpredict.storage.new_hdf5 import new_hdf5

SHORT = ("--pitch", "50", "--min-tissue", "0", "--genes", "GNAS")
EAGER = ("--engine", "eager", "--threads", "1")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cut_slides(tmp_path_factory.mktemp("slides"), 16)


def test_killed_calls_go_on_and_end_as_if_undisturbed(quick_model_path, tmp_path):
    trial = kill_at_random(tmp_path, ["predict", SLIDE, "-m", quick_model_path, *SHORT, *LIGHT, "--pitch", "20"], 3)
    assert trial.wrong == []
    assert trial.tried >= 3


def test_little_memory_is_told_of_and_nothing_is_damaged(slides, quick_model_path, tmp_path):
    trial = starve(tmp_path, ["predict", slides[0], "-m", quick_model_path, *SHORT, *EAGER], 3)
    assert trial.wrong == []


def test_a_full_disk_costs_only_what_does_not_fit(slides, quick_model_path, tmp_path):
    try:
        trial = fill_disk(tmp_path, ["predict", *slides[:2], "-m", quick_model_path, *SHORT, *LIGHT], 2)
    except CannotTryError as error:
        pytest.skip(str(error))
    assert trial.wrong == []
    assert trial.came["one sentence"] >= 1


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_hdf5_file_that_does_not_fit_is_an_error_and_leaves_nothing(tmp_path, compression):
    """Closing it ended the process."""
    values = np.random.default_rng(0).random(8_000_000)
    try:
        with small_disk(tmp_path / "disk") as disk:
            with pytest.raises(OSError, match="No space left on device"), new_hdf5(disk / "a.h5") as file:
                file.create_dataset("values", data=values, compression=compression)
            assert not list(disk.iterdir())
            with new_hdf5(disk / "a.h5") as file:
                file.create_dataset("values", data=values[:1000], compression=compression)
            with h5py.File(disk / "a.h5") as file:
                np.testing.assert_array_equal(file["values"], values[:1000])
    except CannotTryError as error:
        pytest.skip(str(error))


def test_many_slides_leave_no_handles_and_threads(slides, tiny_model_path, tmp_path):
    found = soak(slides, ["-m", tiny_model_path, *SHORT], tmp_path / "out")
    assert found.exit_code == 0
    for early, late in map(early_and_late, (found.handles, found.threads)):
        assert late <= early + 2
    assert found.growth < 0.25  # so few slides say little; the benchmark's 200 stay within 5 %
