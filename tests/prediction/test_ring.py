from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SLIDE

from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.model.file import load_model
from stpredict.model.reference import reference_of
from stpredict.prediction.answers import arrange, ask_on_cpu, ask_on_gpu
from stpredict.prediction.on_device import measures_on_device, turned
from stpredict.prediction.quality import measure_patches
from stpredict.prediction.ring import FILLED_AHEAD, Ring, filled_batches
from stpredict.slides.raster import Block, make_raster, read_blocks, read_patches
from stpredict.slides.slide import Mpp, open_slide
from stpredict.slides.symmetry import SYMMETRIES, all_turns, turn

SIZE, PATCH_PX = 8, 64
N = 3 * SIZE + 3


@pytest.fixture(scope="module")
def centres() -> np.ndarray:
    return np.random.default_rng(0).uniform((400, 400), (1900, 2600), (N, 2))


def one_by_one(raster, centres, views=(1,)) -> np.ndarray:
    found = {i: patch for index, patches in read_patches(raster, centres, PATCH_PX, 2, views)
             for i, patch in zip(index, patches, strict=True)}  # fmt: skip
    return np.stack([found[i] for i in range(len(centres))])


@pytest.mark.parametrize("views", [(1,), (1, 2)])
def test_ring_hold_each_part_s_patches_and_then_white_and_go_round(centres, views):
    with open_slide(SLIDE) as slide, ThreadPoolExecutor(3) as pool:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.499)
        expected = one_by_one(raster, centres, views)
        parts = [np.arange(5), np.arange(5, 5 + 2 * SIZE), np.arange(5 + 2 * SIZE, N)]
        sizes, order, made = deque[int](), [], []

        def given():
            for part in parts:
                sizes.append(len(part))
                yield part

        def noted():
            for block in read_blocks(raster, centres, PATCH_PX, pool, 2, views, given()):
                order.extend(block.index)
                yield block

        def allocate():
            made.append(np.empty((SIZE, *expected.shape[1:]), np.uint8))
            return made[-1]

        ring, batches = Ring(allocate), []
        for batch in filled_batches(noted(), sizes, ring, pool):
            assert any(batch is one for one in made)  # the engine gets the memory that the patches were copied to
            batches.append(batch.copy())
            batch[:] = 7  # what is left from before is no padding
            ring.give_back(batch)
    rows = [5, SIZE, SIZE, N - 5 - 2 * SIZE]
    assert len(batches) == len(rows)
    found = np.concatenate([batch[:n] for batch, n in zip(batches, rows, strict=True)])
    np.testing.assert_array_equal(found, expected[order])
    assert all((batch[n:] == 255).all() for batch, n in zip(batches, rows, strict=True))
    assert len(made) <= FILLED_AHEAD + 1


def test_a_batch_that_is_still_read_is_not_filled_anew():
    region = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    corners = [(3 * i, 2 * i) for i in range(40)]
    ring = Ring(lambda: np.empty((4, 16, 16, 3), np.uint8))
    with ThreadPoolExecutor(2) as pool:
        held = list(filled_batches(iter([Block(np.arange(40), region, corners, 16, (1,))]), deque([40]), ring, pool))
    for i, (x, y) in enumerate(corners):
        np.testing.assert_array_equal(held[i // 4][i % 4], region[y : y + 16, x : x + 16])


def test_what_goes_wrong_while_copying_is_raised():
    ring = Ring(lambda: np.empty((4, 16, 16, 3), np.uint8))
    block = Block(np.arange(1), np.empty((8, 8, 3), np.uint8), [(0, 0)], 16, (1,))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="broadcast"):
        list(filled_batches(iter([block]), deque([1]), ring, pool))


@pytest.fixture(scope="module")
def patches(region) -> np.ndarray:
    return np.stack([region[y : y + 224, x : x + 224] for y in range(0, 2700, 700) for x in range(0, 1900, 600)])


@pytest.mark.parametrize("known", [True, False])
def test_a_device_measures_as_the_processor_does(model_with_reference_path, patches, known):
    reference = reference_of(load_model(model_with_reference_path)) if known else None
    blank = np.full((1, 224, 224, 3), 255, np.uint8)
    tried = np.concatenate([patches, blank, blank // 255, np.random.default_rng(0).permuted(patches[:2], axis=1)])
    found = measures_on_device(reference)(torch.from_numpy(tried)).numpy()
    expected = measure_patches(tried, reference)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])


def test_turns_are_the_same_made_at_once_or_on_a_device():
    stacks = np.random.default_rng(0).integers(0, 256, (3, 2, 12, 12, 3)).astype(np.uint8)
    for given in (stacks, stacks[:, 0].copy()):
        at_once = list(all_turns(given, lambda given=given: np.empty_like(given)))
        for code in range(SYMMETRIES):
            np.testing.assert_array_equal(at_once[code], turn(given, code))
            np.testing.assert_array_equal(turned(torch.from_numpy(given), code).numpy(), turn(given, code))


@pytest.mark.parametrize("tta", [False, True])
def test_an_engine_is_asked_the_same_on_a_device_and_on_the_processor(model_with_reference_path, patches, tta):
    model = load_model(model_with_reference_path)
    engine = open_engine(model, EngineRequest("eager", "fp32", batch_size=3), patches, print)
    ring = Ring(lambda: np.empty((3, 224, 224, 3), np.uint8))
    found = []
    for ask, as_if_on in ((ask_on_cpu, "cpu"), (ask_on_gpu, "cuda")):

        def batches():
            for start in (0, 3):
                batch = ring.lend()
                batch[:] = patches[start : start + 3]
                yield batch

        rows = []
        for answer in ask(replace(engine, device=as_if_on), batches(), ring, model, tta, 2):
            rows.append(np.empty((2, 2 * (1 + tta) + 5), np.float32))
            arrange(answer, np.array([3, 1]), rows[-1])
        found.append(np.concatenate(rows))
        assert len(ring.free) <= (SYMMETRIES if tta else 1) + 1
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5, atol=2e-5)
    if not tta:
        np.testing.assert_array_equal(found[0][:, :2], found[1][:, :2])
