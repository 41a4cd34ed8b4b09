from __future__ import annotations

import numpy as np
import openslide
import pytest
import torch
from conftest import DATA, SLIDE
from torch.nn.functional import normalize

from stpredict.stain.macenko import LASSO, TARGET_CONCENTRATIONS, TARGET_STAINS, macenko


@pytest.fixture(scope="module")
def patches():
    with openslide.OpenSlide(SLIDE) as slide:
        places = ((1000, 1500), (1200, 1700), (900, 1200), (1550, 600))
        return np.stack([np.asarray(slide.read_region(place, 0, (96, 96)))[..., :3] for place in places])


def reference(image):
    """The published steps, in float64, by eigenvalues of LAPACK and coordinate descent."""
    image = np.clip(image * 255.0 / np.percentile(image, 95), 0, 255).astype(np.uint8)
    density = -np.log(np.maximum(image, 1) / 255.0).reshape(-1, 3)
    tissue = density[(density > 0.15).any(axis=1)]
    vectors = np.linalg.eigh(np.cov(tissue, rowvar=False))[1][:, [2, 1]]
    vectors = vectors * np.where(vectors[0] < 0, -1, 1)
    along = tissue @ vectors
    angles = np.percentile(np.arctan2(along[:, 1], along[:, 0]), (1, 99))
    stains = np.array([vectors @ [np.cos(angle), np.sin(angle)] for angle in angles])
    stains = stains[np.argsort(-stains[:, 0])]
    alike, explained = stains[0] @ stains[1], density @ stains.T - LASSO
    found = np.zeros_like(explained)
    for _ in range(300):
        found[:, 0] = np.maximum(0, explained[:, 0] - alike * found[:, 1])
        found[:, 1] = np.maximum(0, explained[:, 1] - alike * found[:, 0])
    found *= TARGET_CONCENTRATIONS.double().numpy() / np.percentile(found, 99, axis=0)
    target = normalize(TARGET_STAINS.double()).numpy()
    return (255 * np.exp(-found @ target)).reshape(image.shape).astype(np.uint8)


def normalised(images):
    return macenko(torch.from_numpy(images).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1).numpy()


def test_real_patches_become_what_the_published_steps_make_of_them(patches):
    for ours, patch in zip(normalised(patches), patches, strict=True):
        difference = np.abs(ours - reference(patch).astype(float))
        assert difference.max() <= 1  # where a value is next to a whole number
        assert (difference > 0).mean() < 0.002
        assert np.abs(ours - patch.astype(float)).mean() > 5  # it does something


def test_real_patches_become_what_spams_makes_of_them():
    """SPAMS 2.6.14 solved the lasso, numpy the rest, of three patches of the example slide."""
    with np.load(DATA / "macenko_spams.npz") as file:
        patches, wanted = file["patches"], file["normalised"].astype(float)
    difference = np.abs(normalised(patches) - wanted)
    assert difference.max() <= 1  # where a value is next to a whole number
    assert (difference > 0).mean() < 0.002


def test_glass_stays_and_each_patch_is_by_itself(patches):
    glass = np.full_like(patches[:1], 244)
    both = normalised(np.concatenate([glass, patches[:1]]))
    np.testing.assert_array_equal(both[0], glass[0])
    np.testing.assert_array_equal(both[1], normalised(patches[:1])[0])


def test_a_pale_scan_comes_close_to_the_same_stains(patches):
    pale = 255 * (patches / 255.0) ** 0.7
    before = np.abs(pale - patches).mean()
    after = np.abs(normalised(pale.astype(np.uint8)) - normalised(patches)).mean()
    assert after < before / 4
