"""However a batch is divided, among processes or into parts in one, the weights come out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stages_to_train
import torch
from hypothesis import given
from hypothesis import strategies as st
from stages_to_train import FEATURES, ITEMS, LESSONS, N_SPOTS, SETTINGS, STEPS, Killed, encode, losses, train
from torch import Tensor
from torchrun import in_two_processes

from stpredict.errors import UsageError
from stpredict.networks.attention import random_mask
from stpredict.networks.draws import Dropout, Share, draw, sharing
from stpredict.networks.mixing import Block
from stpredict.training.sampling import Stage, divide

#: Those without batch norms, which see one part of a batch at a time, and that compare no items with one another.
IN_PARTS = ("m2ort", "balanced", "deepspace", "triplex-around", "istar")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of each lesson, whose batches it computes at once."""
    folder = tmp_path_factory.mktemp("alone")
    for name in LESSONS:
        train(folder / name, name)
    return folder


def check_weights(found: Path, alone: Path) -> None:
    weights = torch.load(alone / "weights")
    for name, tensor in torch.load(found / "weights").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5, msg=f"{found.name}: {name}")


def check_same(found: Path, alone: Path) -> None:
    check_weights(found, alone)
    np.testing.assert_allclose(*(np.array(losses(one), float) for one in (found, alone)), atol=2e-5)


@given(st.integers(1, 40), st.integers(1, 9))
def test_processes_divide_a_batch(n: int, world: int):
    shares = [Share(n, rank, world) for rank in range(world)]
    assert sorted(place for share in shares for place in share.counted) == list(range(n))
    assert all(share.own for share in shares)  # whoever had nothing would keep the others waiting
    assert all(share.own == share.counted for share in shares if share.counted)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_an_item_gets_the_same_random_numbers_in_any_process(n: int):
    rows = 3  # of each item, as tokens in one dimension with the items
    tensors = torch.randn(n, rows, 5)
    dropout = Dropout(0.4)

    def drawn(share: Share) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(5)
        with sharing(share):
            mine = tensors[share.own].flatten(0, 1)
            masks = draw(lambda n: random_mask((n, 1, 3, 3), 0.3, mine), len(share.own))
            return dropout(mine), masks, torch.rand(1)

    dropped, masked, after = drawn(Share(n))
    for world in (2, 3):
        for rank in range(world):
            share = Share(n, rank, world)
            mine = drawn(share)
            assert torch.equal(mine[0], dropped.reshape(n, rows, 5)[share.own].flatten(0, 1))
            assert torch.equal(mine[1], masked[share.own])
            assert torch.equal(mine[2], after)  # and the stream is as far in all


def test_two_processes_end_with_the_weights_of_one(alone: Path, tmp_path: Path):
    """With a last batch of one item, fewer than there are processes; the first lesson was begun by one process."""
    start = (
        "import sys, numpy as np, stages_to_train as one; from pathlib import Path; from torch import distributed\n"
        "distributed.init_process_group('gloo')\n"
        "folder = Path(sys.argv[1]) if distributed.get_rank() == 0 else Path(sys.argv[2])\n"
        "for name in one.LESSONS: one.train(folder / name, name)\n"
        "one.train(folder / 'm2ort-in-parts', 'm2ort', parts=2)\n"
        "np.save(folder / 'described.npy', one.encode(Path(sys.argv[1]) / 'encoded.npy'))\n"
        "distributed.destroy_process_group()\n"
    )
    assert len(ITEMS) % SETTINGS.batch_size == 1
    for rank in range(2):
        with pytest.raises(Killed):
            train(tmp_path / str(rank) / "m2ort", at=STEPS + 1)
    in_two_processes(start, tmp_path / "0", tmp_path / "1")
    for name in LESSONS:
        check_same(tmp_path / "0" / name, alone / name)
        check_weights(tmp_path / "1" / name, alone / name)  # the first process alone writes the log
    check_same(tmp_path / "0" / "m2ort-in-parts", alone / "m2ort")
    described = [np.load(tmp_path / str(rank) / "described.npy") for rank in range(2)]
    assert min(map(len, described)) > 0
    assert sorted(np.concatenate(described).tolist()) == list(range(N_SPOTS))
    np.testing.assert_array_equal(np.load(tmp_path / "0" / "encoded.npy"), FEATURES.astype(np.float16))


def test_a_killed_encoder_goes_on_with_the_next_section(tmp_path: Path):
    cache = tmp_path / "encoded.npy"
    with pytest.raises(Killed):
        encode(cache, at=1)
    assert not cache.exists()
    assert encode(cache) == list(range(10, N_SPOTS))  # the first section has ten spots
    assert encode(cache) == []
    np.testing.assert_array_equal(np.load(cache), FEATURES.astype(np.float16))
    assert list(tmp_path.iterdir()) == [cache]


def test_features_beyond_half_precision_are_kept_in_single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages_to_train, "FEATURES", 1000 * FEATURES)
    encode(tmp_path / "encoded.npy")
    np.testing.assert_allclose(np.load(tmp_path / "encoded.npy"), 1000 * FEATURES, rtol=1e-6)


@pytest.mark.parametrize("name", IN_PARTS)
def test_parts_of_a_batch_add_up_to_it(alone: Path, tmp_path: Path, name: str):
    """Three parts of batches of four items, and of one."""
    train(tmp_path / name, name, parts=3)
    check_same(tmp_path / name, alone / name)


def test_a_run_that_is_killed_can_go_on_in_parts(alone: Path, tmp_path: Path):
    with pytest.raises(Killed):
        train(tmp_path, at=STEPS + 1)
    train(tmp_path, parts=2)
    check_same(tmp_path, alone / "m2ort")


def test_a_gpu_without_memory_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(UsageError, match="memory for 2 patches at once; the same call with --accumulate 4 computes"):
        train(tmp_path, at=3, what=torch.OutOfMemoryError(), parts=2)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_means_over_values_and_over_items_add_up(n: int, n_parts: int, world: int):
    rng = np.random.default_rng(n)
    items, values, losses = rng.permutation(30)[:n], rng.integers(0, 3, 30), rng.random(30)
    stage = Stage("train", items, 1, 1e-3, values=values)
    found = [divide(stage, items, items % 8, n_parts, world, rank) for rank in range(world)]
    assert len({len(parts) for parts in found}) == 1  # or some would wait for the others
    every = [part for parts in found for part in parts]
    counted = [part.items for part in every if part.share.counted]
    assert sorted(np.concatenate(counted).tolist()) == sorted(items.tolist())
    assert all((part.turns == part.items % 8).all() for part in every)
    if values[items].any():
        means = [part.weight * np.average(losses[part.items], weights=values[part.items])
                 for part in every if values[part.items].any()]  # fmt: skip
        assert sum(means) == pytest.approx(np.average(losses[items], weights=values[items]))
    of_items = [part.weight * part.share.by_items * losses[part.items].mean() for part in every if part.share.counted]
    assert sum(of_items) == pytest.approx(losses[items].mean())


def test_who_passes_over_tokens_draws_what_they_take():
    block = Block(8, 2, 16, 0.3).train()
    tokens = torch.randn(1, 7, 8)
    torch.manual_seed(3)
    block(tokens)
    after = torch.rand(1)
    torch.manual_seed(3)
    block.pass_over(tokens)
    assert torch.equal(torch.rand(1), after)
