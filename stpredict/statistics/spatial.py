"""Spatial statistics of maps: their autocorrelation, and how well two unrelated maps of equal smoothness would agree.

Neighbouring spots resemble one another, so a map of a few hundred spots holds far fewer independent values. The usual
test of a correlation would find significance everywhere. Here the more both maps are autocorrelated, the less a spot
counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.special import stdtr

from stpredict.arrays import Float, Int, Labels, Real
from stpredict.statistics.blocks import gene_by_gene, rows_of_sections
from stpredict.statistics.metrics import mean_of_known, pearson_residuals

#: Spots within this many times the usual distance to the nearest are neighbours: four on a square lattice, six on a
#: hexagonal one.
NEIGHBOUR_DISTANCE = 1.3
#: With fewer effectively independent spots there is no standard error.
MIN_EFFECTIVE_SPOTS = 10
MIN_FREEDOM = 0.1
MAX_CORRELATION = 1 - 1e-12
#: Most pixels along a side of the raster that sums pairs; larger sections get a coarser raster.
MAX_RASTER = 512
#: Pixels of all genes that are transformed together.
RASTER_VALUES = 2**21


def spot_distance(centres: Float) -> float:
    """Median distance from a spot to the nearest other one, in the unit of `centres`; 1 for a single spot."""
    return float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1])) if len(centres) > 1 else 1.0


def spot_graph(centres: Float) -> csr_array:
    """Symmetric n x n adjacency (0 and 1) of spots at `centres` (n x 2, any unit); a lone spot has no neighbours."""
    if len(centres) < 2:
        return csr_array((len(centres), len(centres)))
    pairs = cKDTree(centres).query_pairs(NEIGHBOUR_DISTANCE * spot_distance(centres), output_type="ndarray")
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    return csr_array((np.ones(len(i)), (i, j)), (len(centres), len(centres)))


def neighbour_mean(section: Labels, centres: Float) -> csr_array:
    """n x n weights that replace each spot's value by the mean over it and its neighbours in its section.

    ST-Net and TRIPLEX smooth labels so. Neighbours are the spots around a spot, diagonal ones included.
    """
    reach = NEIGHBOUR_DISTANCE * np.sqrt(2)
    places, to = [np.arange(len(section))], [np.arange(len(section))]
    for name in np.unique(section):
        own = np.flatnonzero(section == name)
        pairs = cKDTree(centres[own]).query_pairs(reach * spot_distance(centres[own]), output_type="ndarray")
        places += [own[pairs[:, 0]], own[pairs[:, 1]]]
        to += [own[pairs[:, 1]], own[pairs[:, 0]]]
    i, j = np.concatenate(places), np.concatenate(to)
    return csr_array((1 / np.bincount(i)[i], (i, j)), (len(section), len(section)))


def moran_i(values: Float, graph: csr_array) -> Float:
    """Moran's I per column of `values` (spots x genes): near 0 if neighbours differ, towards 1 if they agree.

    NaN for a constant column, or if the graph has no edges.
    """
    z = values - values.mean(axis=0)
    variance, edges = (z**2).mean(axis=0), graph.sum()
    varies = (np.ptp(values, axis=0) > 1e-12 * np.maximum(1.0, np.abs(values).max(axis=0))) & (edges > 0)
    agreement = (z * (graph @ z)).sum(axis=0) / max(edges, 1)
    found: Float = np.divide(agreement, variance, out=np.full(values.shape[1], np.nan), where=varies)
    return found


def moran_per_gene(predicted: Real, counts: Real, depth: Float, section: Labels, centres: Float) -> tuple[Float, Float]:
    """Moran's I per gene, of the prediction and of the measured Pearson residuals.

    Each is the mean over the sections that measured the gene.
    """

    def both(rows: Int) -> Float:
        graph, of_spots = spot_graph(centres[rows]), depth[rows]

        def of_genes(p: Float, x: Float) -> Float:
            observed = pearson_residuals(x, of_spots)
            return np.array([np.where(np.isnan(observed[0]), np.nan, moran_i(p, graph)), moran_i(observed, graph)])

        return gene_by_gene(of_genes, rows, predicted, counts)

    found = np.array([both(rows) for rows in rows_of_sections(section)])
    return mean_of_known(found[:, 0]), mean_of_known(found[:, 1])


def modified_t_test(correlation: Float, variance: Float) -> Float:
    """One-sided p-value per gene: the probability that unrelated maps of equal smoothness correlate so much.

    It is the t-test of a correlation, with the effective number of spots, 1 + 1 / variance, in place of their number
    (Clifford, Richardson and Hemon 1989, Biometrics 45:123). `variance` comes from `correlation_variance`.
    """
    freedom = np.maximum(1 / variance - 1, MIN_FREEDOM)
    r = np.clip(correlation, -MAX_CORRELATION, MAX_CORRELATION)
    p: Float = stdtr(freedom, -r * np.sqrt(freedom / (1 - r**2)))
    return p


def correlation_error(predicted: Real, counts: Real, depth: Float, section: Labels, centres: Float) -> Float:
    """Per gene: the standard error of the depth-controlled correlation, from `correlation_variance`.

    It holds for a gene that is not predicted; at a correlation r it is about 1 / (1 - r^2) times too large. It says how
    well the tissue at hand determines the correlation, and nothing about differences between patients. NaN if the maps
    hold fewer than ten effectively independent spots: their smoothness cannot be told from so few.
    """
    variance = correlation_variance(predicted, counts, depth, section, centres)
    return np.where(1 + 1 / variance >= MIN_EFFECTIVE_SPOTS, np.sqrt(variance), np.nan)


def correlation_variance(predicted: Real, counts: Real, depth: Float, section: Labels, centres: Float) -> Float:
    """Per gene: the variance of the depth-controlled correlation between unrelated maps as smooth as these.

    Within a section it is the sum over distance classes k of N_k C_k D_k / n^2 (Clifford, Richardson and Hemon 1989,
    Biometrics 45:123). N_k is the number of pairs of spots so far apart; C_k and D_k are the mean products over these
    pairs, of the standardised prediction and of the residuals. It is at least 1 / (n - 1), the variance for independent
    spots. The correlation is a mean over sections; the variance follows. NaN for genes never counted or not measured.
    """

    def variance(rows: Int) -> Float:
        of_section, of_spots = _variance_at(centres[rows]), depth[rows]

        def of_genes(p: Float, x: Float) -> Float:
            observed = pearson_residuals(x, of_spots)
            found = of_section(_standardised(p), _standardised(observed))
            return np.where(np.ptp(observed, axis=0) > 0, found, np.nan)

        return gene_by_gene(of_genes, rows, predicted, counts)

    found = np.array([variance(rows) for rows in rows_of_sections(section)])
    with np.errstate(invalid="ignore"):
        mean: Float = mean_of_known(found) / np.isfinite(found).sum(axis=0)
    return mean


def _variance_at(centres: Float) -> Callable[[Float, Float], Float]:
    """The variance per gene of the correlation of two standardised maps (spots x genes) with spots at `centres`.

    A Fourier transform sums the products of pairs, on a raster with pixels of half the spots' distance.
    """
    n = len(centres)
    extent = np.ptp(centres, axis=0)
    pixel = max(spot_distance(centres) / 2, float(extent.max()) / MAX_RASTER) or 1.0
    place = np.rint((centres - centres.min(axis=0)) / pixel).astype(int)
    shape = tuple(next_fast_len(2 * int(side) + 1, real=True) for side in place.max(axis=0))
    cells = shape[0] * shape[1]
    on_raster = csr_array((np.ones(n), (place @ (shape[1], 1), np.arange(n))), (cells, n))
    lag = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side, 1 / side) for side in shape), indexing="ij"))
    distance = np.floor(lag.ravel() / 2 + 0.5).astype(int)  # in units of the spots' distance
    by_distance = csr_array((np.ones(cells), (distance, np.arange(cells))))

    def sum_pairs(values: Float) -> Float:
        spectrum = rfft2((on_raster @ values).reshape(*shape, -1), axes=(0, 1))
        sums: Float = by_distance @ irfft2(abs(spectrum) ** 2, shape, axes=(0, 1)).reshape(cells, -1)
        return sums

    pairs = np.maximum(np.rint(sum_pairs(np.ones((n, 1)))), 1)
    step = max(1, RASTER_VALUES // cells)

    def variance(predicted: Float, observed: Float) -> Float:
        parts = [slice(start, start + step) for start in range(0, predicted.shape[1], step)]
        sums = [(sum_pairs(predicted[:, some]) * sum_pairs(observed[:, some]) / pairs).sum(axis=0) for some in parts]
        return np.maximum(np.concatenate(sums) / n**2, 1 / max(n - 1, 1))

    return variance


def _standardised(values: Float) -> Float:
    """Columns with mean 0 and spread 1; a constant column becomes zeros."""
    z, spread = values - values.mean(axis=0), values.std(axis=0)
    scaled: Float = np.divide(z, spread, out=np.zeros_like(z), where=spread > 1e-9)
    return scaled


def false_discovery_rate(p: Float) -> Float:
    """Benjamini-Hochberg adjusted p-values; NaN stays NaN and does not count as a test."""
    from scipy.stats import false_discovery_control  # slow to import

    adjusted = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known])
    return adjusted
