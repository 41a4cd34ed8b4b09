from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stpredict.data.counts import in_memory
from stpredict.data.gene_mask import GeneMask
from stpredict.data.tiles import Tiles
from stpredict.statistics.metrics import pearson_residuals
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import make_objective
from stpredict.statistics.regression import find_directions
from stpredict.training import head_sums
from stpredict.training.covariances import gene_covariance
from stpredict.training.head_sums import Observations, fit_sums, spread_of, sum_up
from stpredict.training.heads import fit_map
from stpredict.training.panel_counts import PanelCounts, SectionSums, objective_of
from stpredict.training.programmes import (
    STRENGTHS,
    fit_programmes,
    fit_programmes_where_measured,
    shrinkages,
)
from stpredict.training.shared_sums import SharedSums

GENES, SECTIONS = [f"G{i:02}" for i in range(10)], ["A1", "A2", "B1", "C1"]
EACH, WIDTH = 30, 4


def make_tiles(masked: bool, seed: int = 0) -> tuple[Tiles, np.ndarray]:
    """Four sections of three patients, and features that move their counts; B1 and C1 may lack some genes."""
    rng = np.random.default_rng(seed)
    section = np.repeat(SECTIONS, EACH)
    features = rng.normal(size=(len(section), WIDTH)) + 5 * (section == "B1")[:, None]
    mean = rng.uniform(20, 90, (len(section), 1)) * np.exp(features @ rng.normal(0, 0.2, (WIDTH, len(GENES))))
    counts = rng.poisson(np.minimum(mean, 4000))
    counts[3] = 0
    measured = np.ones((len(SECTIONS), len(GENES)), dtype=bool)
    if masked:
        measured[2, :3], measured[3, 6:9] = False, False
        counts = counts * measured[np.repeat(np.arange(len(SECTIONS)), EACH)]
    tiles = Tiles(
        None, 64, 0.69, 100.0, 200.0, np.arange(len(section)).astype(str), section, np.array([s[0] for s in section]),
        np.zeros((len(section), 2)), GENES, in_memory(counts), np.array([], dtype=object),
        measured=GeneMask(SECTIONS, measured) if masked else None,
    )  # fmt: skip
    return tiles, features


def raw_residuals(tiles: Tiles, panel: Sequence[str]) -> np.ndarray:
    counts = tiles.panel_counts(panel)
    own = [tiles.section == name for name in SECTIONS]
    return np.concatenate([pearson_residuals(counts[rows], tiles.depth[rows]) for rows in own])


def observe(tiles: Tiles, panel: Sequence[str], sections: Sequence[str], features: np.ndarray) -> Observations:
    """The residuals and features of the spots with counts of some sections."""
    rows = np.flatnonzero(np.isin(tiles.section, sections) & (tiles.depth > 0))
    return Observations(SectionSums(tiles, GENES).residuals(panel), tiles, panel, rows, features.__getitem__)


@pytest.mark.parametrize("masked", [False, True])
def test_residuals_of_some_spots_are_those_of_whole_sections(masked: bool):
    tiles, _ = make_tiles(masked)
    whole, sums = raw_residuals(tiles, GENES[2:8]), SectionSums(tiles, GENES)
    read = sums.residuals(GENES[2:8])
    np.testing.assert_allclose(read[:], whole)
    np.testing.assert_allclose(read[np.array([70, 3, 41, 3])], whole[[70, 3, 41, 3]])
    np.testing.assert_allclose(read[tiles.depth > 500], whole[tiles.depth > 500])
    np.testing.assert_allclose(sums.residuals([GENES[6], GENES[5]])[:], whole[:, [4, 3]])


@pytest.mark.parametrize("masked", [False, True])
def test_an_objective_from_sums_is_that_of_all_counts(masked: bool):
    tiles, features = make_tiles(masked)
    sections = ["A1", "A2", "B1"]
    fit = np.isin(tiles.section, sections) & (tiles.depth > 0)
    whole = make_objective("residuals", tiles.panel_counts(GENES), tiles.depth, tiles.section, fit)
    kinds = sum_up(observe(tiles, GENES, sections, features), features.mean(axis=0))
    found = objective_of(SectionSums(tiles, GENES), GENES, spread_of(kinds, len(GENES)), tiles.depth, fit)
    for name in ("offset", "slope", "residual_scale"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9)
    np.testing.assert_allclose(found.targets[fit], whole.targets[fit], rtol=1e-9, atol=1e-9)
    index = np.array([2, 50, 80])
    np.testing.assert_allclose(found.at(index).targets[1:], whole.targets[[50, 80]], rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_a_head_from_sums_is_that_of_all_spots(seed: int, masked: bool):
    """At one strength; and whether few or many spots measured a gene."""
    tiles, features = make_tiles(masked, seed)
    sections = ["A1", "B1", "C1"]
    observed = observe(tiles, GENES, sections, features)
    rows = observed.rows
    covariance, _ = gene_covariance(tiles, GENES, sections)
    kinds = sum_up(observed, features[:5].mean(axis=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stpredict.training.programmes.STRENGTHS", np.array([30.0]))
        wanted = fit_programmes_where_measured(features[rows], raw_residuals(tiles, GENES)[rows], covariance, 6)
        for per_feature in (0, 20, 1000):
            patch.setattr(head_sums, "SPOTS_PER_FEATURE", per_feature)
            found = fit_sums(kinds, covariance, 6, observed)
            np.testing.assert_allclose(found.predict(features), wanted.predict(features), rtol=1e-6, atol=1e-7)


def test_the_penalty_has_the_least_error_at_the_mean_leverage():
    tiles, telling = make_tiles(masked=False)
    features = 0.3 * telling + np.random.default_rng(1).normal(size=telling.shape)
    rows, covariance = np.flatnonzero(tiles.depth > 0), np.eye(len(GENES))
    x, y = features[rows], raw_residuals(tiles, GENES)[rows]
    observed = observe(tiles, GENES, SECTIONS, features)
    found = fit_sums(sum_up(observed, np.zeros(WIDTH)), covariance, len(GENES), observed).predict(x)
    known, errors, fits = find_directions(x), [], []
    for kept in shrinkages(known, np.ones(len(GENES))):
        fits.append(y.mean(axis=0) + known.u @ (kept[:, :1] * known.project(y)))
        leverage = (1 + kept[:, 0].sum()) / len(x)
        errors.append((((fits[-1] - y) / (1 - leverage)) ** 2).sum())
    assert 0 < np.argmin(errors) < len(STRENGTHS) - 1
    np.testing.assert_allclose(found, fits[int(np.argmin(errors))], atol=1e-8)
    # Of many spots, that is what leaving each out in turn chooses.
    np.testing.assert_allclose(found, fit_programmes(x, y, covariance, len(GENES)).predict(x), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_parts_that_share_sums_have_their_own(masked: bool):
    tiles, features = make_tiles(masked)
    parts = [["A1", "A2", "B1"], ["C1", "B1"], ["A1", "C1"], SECTIONS]
    panels = [GENES[:8], GENES[2:], GENES[1:9], GENES]
    read: list[int] = []

    def describe(rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return features[rows]

    shared = SharedSums.of_parts(tiles, parts, GENES, describe)
    shared.middle  # noqa: B018 (it reads a few spots again)
    read.clear()
    for part, panel in zip(parts, panels, strict=True):
        assert shared.serves(part[::-1], panel)
        assert not shared.serves(part, [*panel, "other"])
        own = sum_up(observe(tiles, panel, part, features), shared.middle)
        found = {sums.genes.tobytes(): sums for sums in shared.of(part, panel)}
        assert len(found) == len(own)
        for sums in own:
            joined = found[sums.genes.tobytes()]
            assert joined.moments.n == sums.moments.n
            np.testing.assert_allclose(joined.moments.total, sums.moments.total, atol=1e-9)
            np.testing.assert_allclose(joined.moments.products, sums.moments.products, rtol=1e-9, atol=1e-9)
        alone, used = gene_covariance(tiles, panel, part)
        kept, used_too = gene_covariance(tiles, panel, part, kept=shared.covariances)
        assert used == used_too
        np.testing.assert_allclose(kept, alone, rtol=1e-9, atol=1e-12)
    assert sorted(read) == np.flatnonzero(tiles.depth > 0).tolist()  # each spot once
    assert not shared.serves(["A1"], GENES)


def test_sums_that_would_fill_the_memory_are_made_anew(monkeypatch: pytest.MonkeyPatch):
    tiles, features = make_tiles(masked=False)
    parts, read = [["A1", "A2"], ["B1", "A1"]], 0

    def describe(rows: np.ndarray) -> np.ndarray:
        nonlocal read
        read += len(rows)
        return features[rows]

    for most, wanted in ((1 << 30, 3 * EACH - 1), (0, 4 * EACH - 2)):
        monkeypatch.setattr("stpredict.training.shared_sums.MOST_BYTES", most)
        shared = SharedSums.of_parts(tiles, parts, GENES, describe)
        shared.middle  # noqa: B018 (it reads a few spots again)
        read = 0
        found = [shared.of(part, GENES)[0].moments for part in parts]
        assert read == wanted  # A1, of which a spot has no counts, is in both
        np.testing.assert_allclose(found[1].products, sum_of(tiles, features, parts[1], shared.middle), rtol=1e-9)


def sum_of(tiles: Tiles, features: np.ndarray, sections: Sequence[str], middle: np.ndarray) -> np.ndarray:
    rows = np.isin(tiles.section, sections) & (tiles.depth > 0)
    beside = np.hstack([features[rows] - middle, raw_residuals(tiles, GENES)[rows]])
    return beside.T @ beside


def test_a_head_of_some_training_sections_is_in_the_unit_of_all(monkeypatch: pytest.MonkeyPatch):
    """As where the others choose the number of epochs."""
    monkeypatch.setattr("stpredict.training.programmes.STRENGTHS", np.array([30.0]))
    monkeypatch.setattr(head_sums, "SPOTS_PER_FEATURE", 0)
    tiles, features = make_tiles(masked=False)
    fit, total = tiles.depth > 0, NORMALISATIONS["total"]
    rows = np.flatnonzero(fit & (tiles.section != "B1"))
    whole = make_objective("residuals", tiles.panel_counts(GENES), tiles.depth, tiles.section, fit)
    counts = PanelCounts(tiles, GENES)
    read = make_objective("residuals", counts, tiles.depth, tiles.section, fit)
    expected, used = fit_map(features[rows], rows, tiles, GENES, whole, total)
    found, used_too = fit_map(features[rows], rows, tiles, GENES, read, total)
    assert used == used_too == ["A1", "A2", "C1"]
    np.testing.assert_allclose(found.predict(features), expected.predict(features), rtol=1e-6, atol=1e-7)


def test_of_many_spots_the_penalty_is_that_of_leaving_each_out(monkeypatch: pytest.MonkeyPatch):
    """Also where programmes differ in their penalties."""
    monkeypatch.setattr(head_sums, "SPOTS_PER_FEATURE", 0)
    tiles, telling = make_tiles(masked=False)
    features = 0.3 * telling + np.random.default_rng(1).normal(size=telling.shape)
    rows, mixing = np.flatnonzero(tiles.depth > 0), np.random.default_rng(2).normal(size=(len(GENES), len(GENES)))
    covariance = mixing @ np.diag(np.geomspace(1, 0.01, len(GENES))) @ mixing.T
    x, y = features[rows], raw_residuals(tiles, GENES)[rows]
    observed = observe(tiles, GENES, SECTIONS, features)
    found = fit_sums(sum_up(observed, np.zeros(WIDTH)), covariance, 6, observed).predict(x)
    np.testing.assert_allclose(found, fit_programmes(x, y, covariance, 6).predict(x), atol=1e-6)


@pytest.mark.parametrize("per_feature", [0, 1000])
def test_of_genes_whose_signal_is_less_than_nothing_nothing_is_predicted(
    per_feature: int, monkeypatch: pytest.MonkeyPatch
):
    """An estimate of how much genes vary may be negative: of those that one section lacks here, and of all."""
    monkeypatch.setattr(head_sums, "SPOTS_PER_FEATURE", per_feature)
    tiles, features = make_tiles(masked=True)
    observed = observe(tiles, GENES, SECTIONS, features)
    kinds = sum_up(observed, np.zeros(WIDTH))
    some = np.eye(len(GENES))
    some[:6, :6] *= -1  # no gene that B1 lacks, and none of the others that all sections measured but one
    for covariance in (-np.eye(len(GENES)), some):
        found = fit_sums(kinds, covariance, 4, observed).predict(features)
        nothing = np.diag(covariance) < 0
        assert (found[:, nothing] == 0).all()
        assert nothing.all() or (found[:, ~nothing].std(axis=0) > 0).any()
