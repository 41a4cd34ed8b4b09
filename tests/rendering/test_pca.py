from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from results_to_draw import draw, made_up
from sklearn.decomposition import PCA

from stpredict.errors import ResultError
from stpredict.rendering.pca import principal_components
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 3.3)  # more than one block of the file
N_GENES = 12


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    return 6 + rng.normal(size=(len(SPOTS), N_GENES)) @ (
        rng.normal(size=(N_GENES, N_GENES)) * np.geomspace(1, 0.01, 12)[:, None]
    )


@pytest.fixture(scope="module")
def result(values, tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("pca") / "s.h5ad", SPOTS, values)


def test_components_are_those_of_scikit_learn(result, values):
    ours = principal_components(result, list(range(N_GENES)))
    theirs = PCA(3).fit(values.astype(np.float32))
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-4)
    sign = np.sign((ours.loadings * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.loadings, theirs.components_ * sign[:, None], atol=1e-4)
    np.testing.assert_allclose(ours.scores, theirs.transform(values.astype(np.float32)) * sign, atol=1e-3)
    largest = np.abs(ours.loadings).argmax(axis=1)
    assert (ours.loadings[[0, 1, 2], largest] > 0).all()


def test_the_picture_shows_the_scores_and_its_record_what_they_are(result, tmp_path):
    picture, preview = draw(result, tmp_path, "pca", genes=())
    record = json.loads((tmp_path / "s.pca.json").read_text())
    components = principal_components(result, list(range(N_GENES)))
    drawn = tifffile.imread(picture)
    x, y = SPOTS.centres.astype(int).T
    for i, colour in enumerate(("red", "green", "blue")):
        assert record[colour]["explained_variance"] == pytest.approx(components.explained[i], abs=1e-4)
        assert list(record[colour]["loadings"]) == [f"G{j}" for j in range(N_GENES)]
        low, high = record[colour]["low"], record[colour]["high"]
        expected = np.clip((components.scores[:, i] - low) / (high - low), 0, 1) * 255
        assert abs(drawn[y, x, i] - expected).max() <= 1
    assert preview.exists()


def test_spots_that_were_not_read_stay_white_and_count_for_nothing(values, tmp_path):
    holes = values.copy()
    holes[::7] = np.nan
    result = made_up(tmp_path / "holes.h5ad", SPOTS, holes)
    ours = principal_components(result, list(range(N_GENES)))
    theirs = PCA(3).fit(np.delete(values, np.s_[::7], axis=0))
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-3)
    drawn = tifffile.imread(draw(result, tmp_path, "pca", genes=())[0])
    x, y = SPOTS.centres[::7].astype(int).T
    assert (drawn[y, x] == 255).all()


def test_fewer_than_three_genes_have_no_three_components(result, tmp_path):
    with pytest.raises(ResultError, match="three genes"):
        draw(result, tmp_path, "pca", genes=["G0", "G1"])
