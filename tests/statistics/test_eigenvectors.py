from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import ArpackError

from stpredict.statistics.eigenvectors import widest


def made(size: int, alone: int) -> np.ndarray:
    """A matrix with eigenvalues of both signs, in which the last columns vary with no other."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(size - alone, size - alone)))[0]
    matrix = np.diag(np.r_[np.zeros(size - alone), np.full(alone, 3.0)])
    matrix[: size - alone, : size - alone] = (turn * np.linspace(9, -2, size - alone)) @ turn.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("alone", [0, 40, 118])
@pytest.mark.parametrize("n", [1, 10, 80])
def test_the_widest_directions_are_those_of_a_whole_decomposition(n: int, alone: int):
    matrix = made(120, alone)
    values, vectors = widest(matrix, n)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:n], atol=1e-12)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-11)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-11)


def test_all_directions_are_found_where_few_are_not(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise ArpackError(-9999)

    monkeypatch.setattr("scipy.sparse.linalg.eigsh", fail)
    np.testing.assert_allclose(widest(made(120, 0), 5)[0], np.linspace(9, -2, 120)[:5])
