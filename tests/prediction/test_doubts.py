from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from calls import run
from results_to_draw import made_up
from slides_to_try import tiff_pyramid

from stpredict.prediction.doubts import doubts
from stpredict.result.file import read_provenance
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture
def asked(region: np.ndarray, model_with_reference_path: Path) -> tuple[object, ...]:
    """Options for slides that are like the training data, and unlike it."""
    tissue = region[1000:1800, 600:1400]
    tiff_pyramid(Path("like.tif"), tissue, (0.5, 0.5))
    tiff_pyramid(Path("unlike.tif"), np.ascontiguousarray(tissue[..., ::-1] // 2), (0.5, 0.5))
    return "-m", model_with_reference_path, "--genes", "GNAS", "--engine", "eager", "--threads", "1", "-o", "out"


def test_strict_makes_an_error_of_slides_that_are_not_to_be_trusted(asked):
    both = ("predict", "like.tif", "unlike.tif", *asked)
    done = run(*both, "--strict")
    assert done.exit_code == 1, done.output
    assert done.stdout.split() == ["out/like.h5ad", "out/unlike.h5ad"]
    (said,) = (line for line in done.stderr.splitlines() if "--strict" in line)
    assert said.startswith("stpredict: unlike.tif: --strict: ")
    assert said.endswith("of patches look unlike those the model was trained on; expect little.")
    assert not Path("out/failures.csv").exists()
    again = run(*both, "--strict", "--log-json")
    assert again.exit_code == 1
    events = [json.loads(line) for line in again.stderr.splitlines()]
    (doubtful,) = (event for event in events if event["event"] == "slide-doubtful")
    assert (doubtful["slide"], doubtful["output"]) == ("unlike.tif", "out/unlike.h5ad")
    assert {key: events[-1][key] for key in ("event", "skipped", "failed", "doubtful", "exit_code")} == {
        "event": "summary", "skipped": 2, "failed": 0, "doubtful": 1, "exit_code": 1,
    }  # fmt: skip
    assert run(*both).exit_code == 0
    for slide, code in (("like.tif", 0), ("unlike.tif", 1)):
        assert run("predict", slide, *asked, "--strict").exit_code == code
    assert run("predict", "unlike.tif", *asked, "--strict", "--dry-run").exit_code == 0


def test_strict_says_the_same_of_a_slide_that_is_predicted_in_this_process(asked):
    done = run("predict", "unlike.tif", *asked, "--strict", "--anonymous", "names.csv")
    assert done.exit_code == 1, done.output
    assert "--strict" in done.stderr
    assert "unlike.tif" not in done.output


def test_doubts_are_read_from_results(tmp_path):
    spots = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)
    provenance = read_provenance(made_up(tmp_path / "a.h5ad", spots, np.ones((len(spots), 1))).path)
    assert doubts(provenance) == []
    assert doubts({**provenance, "unusual_patches": 0.5}) == []
    (said,) = doubts({**provenance, "unusual_patches": 0.51})
    assert said.startswith("51% of patches look unlike")
    grey = {**provenance, "slide": {**provenance["slide"], "appearance": "it is grey throughout"}}
    assert doubts(grey) == ["it is grey throughout."]


def test_strict_makes_an_error_of_a_slide_that_is_no_h_and_e(region, model_with_reference_path):
    grey = np.repeat(region[1000:1800, 600:1400].mean(axis=2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    tiff_pyramid(Path("grey.tif"), grey, (0.5, 0.5))
    asked = ("predict", "grey.tif", "-m", model_with_reference_path, "--genes", "GNAS", "--engine", "eager", "--strict")
    for _ in range(2):  # the second call finds the result
        done = run(*asked)
        assert done.exit_code == 1, done.output
        assert "grey.tif: --strict: it is grey throughout; models are trained on H&E in bright field." in done.stderr
