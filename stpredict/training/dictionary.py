"""Learn the windows of a dictionary network by k-means on unlabelled tissue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from stpredict.arrays import Float, UInt8
from stpredict.data.tiles import Tiles
from stpredict.data.tissue import tissue_beside
from stpredict.networks.dictionary import Dictionary, DictionaryConfig, optical_density
from stpredict.slides.views import own_views

N_WINDOWS, N_PATCHES = 60_000, 1200
#: Distance from window to window, but at most the usual number of pixels. A window has equally many at any resolution.
STRIDE_UM = 2.07
#: Directions in which windows have less than this part of the largest variance are noise.
NOISE_FLOOR = 1e-3
KMEANS_BATCH, KMEANS_ITERATIONS = 4096, 15
PATCHES_AT_A_TIME = 64


def learn_windows(
    tiles: Tiles, sections: Sequence[str], n_genes: int, seed: int, centres: int = DictionaryConfig.centres
) -> Dictionary:
    """A dictionary of windows from some sections' unlabelled patches, or from their spots if there are none.

    Slides without counts give as many as sections.
    """
    rng = np.random.default_rng(seed)
    window_px = DictionaryConfig.window_px
    sections = [*sections, *tissue_beside(tiles, sections)]
    windows = [
        sample_windows(patches, window_px, max(1, N_WINDOWS // len(sections) * len(patches) // n_patches), rng)
        for name in sections
        for patches, n_patches in some_patches(tiles, name, max(1, N_PATCHES // len(sections)), rng)
    ]
    flat = np.concatenate(windows)
    mean = flat.mean(axis=0)
    variance, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    floor = NOISE_FLOOR * variance.max()
    kept = variance > floor
    whiten = vectors[:, kept] / np.sqrt(variance[kept] + floor)
    means = MiniBatchKMeans(
        centres, batch_size=KMEANS_BATCH, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed
    ).fit((flat - mean) @ whiten)
    spot_px = tiles.spot_diameter_um / tiles.mpp
    stride_px = stride_at(tiles.mpp)
    network = Dictionary(
        DictionaryConfig(n_genes, spot_px, int(kept.sum()), centres, stride_px=stride_px, patch_px=tiles.patch_px)
    )
    with torch.no_grad():
        for parameter, values in (
            (network.whiten.weight, whiten.T.reshape(-1, 3, window_px, window_px)),
            (network.whiten.bias, -(mean @ whiten)), (network.centres, means.cluster_centers_),
        ):  # fmt: skip
            # Rounded as they will be stored, so that the head is fitted to the features that it will read.
            parameter.copy_(torch.as_tensor(values).half())  # type: ignore[union-attr]
    return network


def stride_at(mpp: float) -> int:
    """Pixels from window to window: the same distance in um at any resolution, but at most the usual number."""
    return max(1, min(DictionaryConfig.stride_px, round(STRIDE_UM / mpp)))


def some_patches(tiles: Tiles, section: str, n: int, rng: np.random.Generator) -> Iterator[tuple[UInt8, int]]:
    """Up to `n` unlabelled patches of a section, or of spots if there are none, in chunks; and their number in all."""
    places = np.flatnonzero(tiles.unlabelled_section == section)
    unlabelled = bool(len(places))
    if not unlabelled:
        places = np.flatnonzero(tiles.section == section)
    chosen = np.sort(rng.choice(places, min(n, len(places)), replace=False))
    for start in range(0, len(chosen), PATCHES_AT_A_TIME):
        patches = tiles.read_patches(chosen[start : start + PATCHES_AT_A_TIME], unlabelled)
        yield own_views(patches, tiles.views), len(chosen)


def sample_windows(patches: UInt8, window_px: int, n: int, rng: np.random.Generator) -> Float:
    """`n` windows at random positions in patches, n x values."""
    every = optical_density(torch.from_numpy(patches)).unfold(2, window_px, 1).unfold(3, window_px, 1)
    which, y, x = (rng.integers(0, every.shape[axis], n) for axis in (0, 2, 3))
    return every[which, :, y, x].reshape(n, -1).double().numpy()
