from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stpredict.data.counts import in_memory
from stpredict.data.gene_mask import GeneMask
from stpredict.data.tiles import Counted, Tiles
from stpredict.statistics.metrics import pearson_residuals
from stpredict.training.covariances import MIN_DEPTH, KeptCovariances, gene_covariance, summed_covariance

GENES = [f"G{i}" for i in range(12)]


def signal_covariance(counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """That of one section."""
    return summed_covariance([lambda: iter([(counts, depth)])], [1.0])


def draw_counts(rng: np.random.Generator, n: int, biology: float) -> np.ndarray:
    """Counts of spots x genes whose first half of genes rises together, and whose second half falls."""
    together = biology * rng.normal(size=(n, 1)) * np.repeat([1, -1], len(GENES) // 2)
    return rng.poisson(rng.uniform(300, 900, (n, 1)) * np.exp(together) / 6)


def test_covariance_is_of_the_signal_and_not_of_the_noise():
    rng = np.random.default_rng(0)
    for biology in (0.0, 0.2):
        counts = draw_counts(rng, 3000, biology).astype(float)
        found = signal_covariance(counts, counts.sum(axis=1))
        np.testing.assert_allclose(found, found.T)
        same, other = found[:6, :6], found[:6, 6:]
        if biology:
            # About 100 counts each: 0.2 of them is two standard deviations of their noise, so about 4 of variance.
            assert same.min() > 1.5
            assert other.max() < -1.5
        else:
            assert np.abs(found).max() < 0.15


def test_covariance_is_that_of_halves_of_the_counts():
    """Over all ways to halve them, as many halvings show."""
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, 50, 0.2)[:, :4].astype(float)
    depth, halvings = rng.uniform(300, 900, 50), 4000
    products = np.zeros((4, 4))
    for _ in range(halvings):
        half = rng.binomial(counts.astype(int), 0.5).astype(float)
        a, b = (pearson_residuals(part, depth / 2) for part in (half, counts - half))
        products += 2 * (a - a.mean(axis=0)).T @ (b - b.mean(axis=0)) / len(counts)
    found = signal_covariance(counts, depth)
    np.testing.assert_allclose(found, products / halvings, rtol=0.02, atol=0.02 * found.max())


def test_shallow_spots_tell_how_genes_vary_where_there_are_no_others():
    tiles = shallow(make_tiles())
    covariance, used = gene_covariance(tiles, GENES, ["A1", "B1"])
    assert used == ["A1", "B1"]
    assert covariance[0, 1] > 0 > covariance[0, -1]


def shallow(tiles: Tiles) -> Tiles:
    counts = np.random.default_rng(0).binomial(tiles.counts.rows().toarray(), 0.1)
    assert counts.sum(axis=1).max() < MIN_DEPTH
    return replace(tiles, counts=in_memory(counts), counts_only=None)


def make_tiles() -> Tiles:
    rng = np.random.default_rng(0)
    section = np.repeat(["A1", "B1", "B2"], 30)
    more = np.repeat(["A2", "B3", "C1", "D1"], 30)
    deep = draw_counts(rng, 120, 0.2)
    deep[90:] //= 1000  # D1 is too shallow
    return Tiles(
        None, 64, 0.69, 100.0, 200.0, np.arange(90).astype(str), section, np.array([s[0] for s in section]),
        np.zeros((90, 2)), GENES, in_memory(draw_counts(rng, 90, 0.2)), np.array([], dtype=object),
        Counted(more, np.array([s[0] for s in more]), in_memory(deep)),
    )  # fmt: skip


def test_nothing_is_learnt_of_a_patient_who_is_held_out():
    tiles = make_tiles()
    assert gene_covariance(tiles, GENES, ["A1"])[1] == ["A1", "A2", "C1"]
    # Of a held-out section's patient, who is also trained on, the other sections may tell.
    assert gene_covariance(tiles, GENES, ["A1", "B1"])[1] == ["A1", "B1", "A2", "B3", "C1"]
    covariance, used = gene_covariance(tiles, GENES, ["B1", "B2"])
    assert used == ["B1", "B2", "B3", "C1"]
    per_patient = [
        np.mean([signal_covariance(c, c.sum(axis=1)) for c in sections], axis=0)
        for sections in (
            [counts_of(tiles, "B1"), counts_of(tiles, "B2"), counts_of(tiles.counts_only, "B3")],
            [counts_of(tiles.counts_only, "C1")],
        )
    ]
    np.testing.assert_allclose(covariance, np.mean(per_patient, axis=0))


def partly(tiles: Tiles, section: str, genes: list[str]) -> Tiles:
    """The same tiles where a section did not measure some genes."""
    names = sorted({*tiles.section, *(tiles.counts_only.section if tiles.counts_only else ())})
    table = np.array([[not (name == section and gene in genes) for gene in GENES] for name in names])
    return replace(tiles, measured=GeneMask(names, table))


def test_two_genes_vary_together_as_in_the_sections_that_measured_both():
    tiles = make_tiles()
    whole, used = gene_covariance(tiles, GENES, ["A1", "B1", "B2"])
    found, used_too = gene_covariance(partly(tiles, "A1", GENES[:3]), GENES, ["A1", "B1", "B2"])
    assert used_too == used
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, found.T)
    # A2, of the same patient, stands alone for what A1 did not measure.
    a1, a2 = (signal_covariance(c, c.sum(axis=1)) for c in (counts_of(tiles, "A1"), counts_of(tiles.counts_only, "A2")))
    np.testing.assert_allclose((found - whole)[:3, :3], ((a2 - (a1 + a2) / 2) / 3)[:3, :3], atol=1e-9)


def counts_of(tiles: Tiles | Counted | None, section: str) -> np.ndarray:
    assert tiles is not None
    return tiles.counts.rows(np.flatnonzero(tiles.section == section)).toarray()


def test_genes_that_no_section_measured_together_do_not_vary_together():
    tiles = replace(make_tiles(), counts_only=None)
    table = np.ones((3, len(GENES)), dtype=bool)
    table[0, :6], table[1:, 6:] = False, False
    found, _ = gene_covariance(replace(tiles, measured=GeneMask(["A1", "B1", "B2"], table)), GENES, ["A1", "B1", "B2"])
    assert (found[:6, 6:] == 0).all()
    assert (found.diagonal() > 0).all()
    table[:, 0] = False
    found, _ = gene_covariance(replace(tiles, measured=GeneMask(["A1", "B1", "B2"], table)), GENES, ["A1", "B1", "B2"])
    assert found[0, 0] == pytest.approx(found.diagonal()[1:].mean())
    assert (found[0, 1:] == 0).all()


@pytest.mark.parametrize("block", [40, 4096])
def test_of_a_pair_of_genes_each_patient_counts_by_the_mean_of_the_sections_that_measured_both(
    block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stpredict.training.covariances.BLOCK", block)
    tiles = make_tiles()
    assert tiles.counts_only is not None
    names = ["A1", "B1", "B2", "A2", "B3", "C1"]
    table = np.ones((6, len(GENES)), dtype=bool)
    table[[1, 4], :4], table[[2, 5], 6:9] = False, False
    measured = dict(zip(names, table, strict=True))
    mask = GeneMask([*names, "D1"], np.vstack([table, table[:1]]))
    found, used = gene_covariance(replace(tiles, measured=mask), GENES, ["A1", "B1", "B2"])
    assert sorted(used) == sorted(names)
    of_patient: dict[str, list[np.ndarray]] = {}
    for name in names:
        one = tiles if name in tiles.section else tiles.counts_only
        counts = counts_of(one, name)
        own = np.full((len(GENES), len(GENES)), np.nan)
        own[np.ix_(measured[name], measured[name])] = signal_covariance(counts[:, measured[name]], counts.sum(axis=1))
        of_patient.setdefault(name[0], []).append(own)
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="empty slice"):
        expected = np.nanmean([np.nanmean(each, axis=0) for each in of_patient.values()], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_no_more_covariances_are_kept_than_there_is_room_for():
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        return np.ones((3, 3))

    kept = KeptCovariances(GENES[:3], most=2 * 72)
    for names in (("A",), ("B",), ("C",), ("A",), ("B",), ("C",)):
        assert (kept.of(names, make) == 1).all()
    assert len(made) == 4  # C twice


@pytest.mark.parametrize(("n_kept", "wanted"), [(7, 6), (3, 10)])
def test_parts_that_divide_a_patient_share_its_sections_as_far_as_there_is_room(
    n_kept: int, wanted: int, monkeypatch: pytest.MonkeyPatch
):
    """B1 and B2 are held out in turn; B3, of the same patient, and sections of others have no image."""
    tiles, made = make_tiles(), 0

    def counted(sections, weights):
        nonlocal made
        made += len(weights)
        return summed_covariance(sections, weights)

    parts = [["A1", "B1", "B2"], ["A1", "B1"], ["A1", "B2"]]
    alone = [gene_covariance(tiles, GENES[2:], part) for part in parts]
    monkeypatch.setattr("stpredict.training.covariances.summed_covariance", counted)
    kept = KeptCovariances.of_parts(tiles, GENES, [frozenset(part) for part in parts], n_kept * 8 * len(GENES) ** 2)
    for part, (expected, used) in zip(parts, alone, strict=True):
        found, used_too = gene_covariance(tiles, GENES[2:], part, kept=kept)
        assert used_too == used
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert made == wanted


def test_a_large_section_is_read_some_spots_at_a_time(monkeypatch: pytest.MonkeyPatch):
    tiles = make_tiles()
    whole, used = gene_covariance(tiles, GENES, ["A1", "B1"])
    monkeypatch.setattr("stpredict.training.covariances.BLOCK", 7)
    found, used_too = gene_covariance(tiles, GENES, ["A1", "B1"])
    assert used_too == used
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-12)
