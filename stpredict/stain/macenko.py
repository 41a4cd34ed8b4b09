"""Macenko's normalisation of haematoxylin and eosin, per patch, as a part of the network.

After Macenko et al. 2009 (A method for normalizing histology slides for quantitative analysis), with the constants that
Path2Space published: brightness to the 95th percentile, pixels of an optical density above 0.15, angles at 1 and 99 %,
concentrations by a non-negative lasso of 0.01, and its target stains. Written with operations that engines can convert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Optical densities of haematoxylin and eosin in R, G, B, made 1 long, and their highest concentrations.
TARGET_STAINS = torch.nn.functional.normalize(torch.tensor([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]))
TARGET_CONCENTRATIONS = torch.tensor([1.9705, 1.0308])
BRIGHT = 0.95
MIN_DENSITY = 0.15
EXTREME = 0.01
LASSO = 0.01
HIGH = 0.99
#: A patch with fewer pixels of tissue has no plane of stains, and stays as it is.
MIN_PIXELS = 3
#: Sweeps of Jacobi rotations, each over all entries off the diagonal; 3 x 3 matrices need about 3.
SWEEPS = 5
TINY = 1e-12


def macenko(images: Tensor) -> Tensor:
    """Images with the target's stains, N x 3 x H x W of RGB, whole numbers in 0 to 255 as float32, like the input."""
    pixels = images.flatten(2)
    bright = percentile(images.flatten(1), torch.full_like(pixels[:, 0, 0], 3 * pixels.shape[2]), BRIGHT)
    standard = torch.floor((pixels * 255 / bright.clamp_min(1.0)[:, None, None]).clamp(0, 255))
    density = -torch.log(standard.clamp_min(1.0) / 255)  # n x 3 x pixels
    stains, n_tissue = find_stains(density)
    found = concentrations(density, stains)
    counted = torch.full_like(n_tissue, density.shape[2])
    highest = torch.stack([percentile(found[:, i], counted, HIGH) for i in range(2)], dim=1)
    scaled = found * (TARGET_CONCENTRATIONS.to(images.device) / highest.clamp_min(TINY))[:, :, None]
    normalised = torch.floor(255 * torch.exp(-(TARGET_STAINS.T.to(images.device) @ scaled)))
    kept = torch.where((n_tissue >= MIN_PIXELS)[:, None, None], normalised, pixels)
    return kept.reshape(images.shape)


def find_stains(density: Tensor) -> tuple[Tensor, Tensor]:
    """Haematoxylin and eosin of each patch, n x 2 x 3, from optical density, n x 3 x pixels; and tissue's pixel counts.

    The stains are the extreme directions of the tissue's pixels in the plane in which these vary most.
    """
    tissue = (density > MIN_DENSITY).any(dim=1)  # n x pixels
    weight = tissue.to(density.dtype)
    n_tissue = weight.sum(dim=1)
    mean = (density * weight[:, None]).sum(dim=2) / n_tissue.clamp_min(1.0)[:, None]
    centred = (density - mean[:, :, None]) * weight[:, None]
    covariance = centred @ centred.transpose(1, 2) / (n_tissue - 1).clamp_min(1.0)[:, None, None]
    first, second = main_plane(covariance)
    along, across = ((direction[:, None] @ density)[:, 0] for direction in (first, second))
    angle = torch.where(tissue, torch.atan2(across, along), math.inf)
    extremes = [percentile(angle, n_tissue, share) for share in (EXTREME, 1 - EXTREME)]
    a, b = (torch.cos(x)[:, None] * first + torch.sin(x)[:, None] * second for x in extremes)
    redder = (a[:, :1] > b[:, :1]).expand_as(a)  # haematoxylin absorbs more red
    return torch.stack([torch.where(redder, a, b), torch.where(redder, b, a)], dim=1), n_tissue


def concentrations(density: Tensor, stains: Tensor) -> Tensor:
    """Amounts of both stains in each pixel, n x 2 x pixels: they minimise squared error plus LASSO times their sum.

    For two stains of length 1, the minimum over non-negative amounts has a closed form: if the unconstrained minimum
    has a negative amount, only the stain that explains more is present.
    """
    alike = (stains[:, 0] * stains[:, 1]).sum(dim=1)[:, None]
    explained = stains @ density - LASSO
    one, two = explained[:, 0], explained[:, 1]
    singular = (1 - alike**2).clamp_min(TINY)
    both = torch.stack([(one - alike * two) / singular, (two - alike * one) / singular], dim=1)
    larger = torch.stack([one >= two, two > one], dim=1)
    alone = torch.where(larger, explained.clamp_min(0.0), 0.0)
    return torch.where((both >= 0).all(dim=1, keepdim=True), both, alone)


def percentile(values: Tensor, counts: Tensor, share: float) -> Tensor:
    """For each row, the quantile at `share` of its `counts` lowest values, interpolated as numpy does: n."""
    place = share * (counts - 1).clamp_min(0.0)
    below = torch.floor(place)
    ordered = torch.sort(values, dim=1).values
    low, high = (
        torch.gather(ordered, 1, at.clamp_max(values.shape[1] - 1).to(torch.int64)[:, None])[:, 0]
        for at in (below, torch.minimum(below + 1, (counts - 1).clamp_min(0.0)))
    )
    return torch.where(high > low, low + (high - low) * (place - below), low)


def main_plane(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the two largest eigenvalues of n x 3 x 3, each n x 3, pointing to more red; by Jacobi.

    Engines cannot convert torch.linalg.eigh.
    """
    entries = [[symmetric[:, i, j] for j in range(3)] for i in range(3)]
    zero, one = torch.zeros_like(entries[0][0]), torch.ones_like(entries[0][0])
    vectors = [[one if i == j else zero for j in range(3)] for i in range(3)]
    for _ in range(SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            half = 0.5 * torch.atan2(2 * entries[p][q], entries[p][p] - entries[q][q])
            cosine, sine = torch.cos(half), torch.sin(half)
            for row in (entries, vectors):  # columns p and q, turned
                for line in row:
                    line[p], line[q] = cosine * line[p] + sine * line[q], cosine * line[q] - sine * line[p]
            entries[p], entries[q] = (
                [cosine * x + sine * y for x, y in zip(entries[p], entries[q], strict=True)],
                [cosine * y - sine * x for x, y in zip(entries[p], entries[q], strict=True)],
            )
    values = torch.stack([entries[i][i] for i in range(3)], dim=1)
    columns = torch.stack([torch.stack(line, dim=1) for line in vectors], dim=1)  # n x component x vector
    order = torch.argsort(values, dim=1, descending=True)
    ordered = torch.gather(columns, 2, order[:, None, :].expand(-1, 3, -1))
    first, second = (torch.where(v[:, :1] < 0, -v, v) for v in (ordered[:, :, 0], ordered[:, :, 1]))
    return first, second
