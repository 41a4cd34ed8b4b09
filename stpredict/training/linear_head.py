"""A linear head fitted to any objective: its loss plus a penalty on the weights, at the minimum of both.

Every objective is convex in z, and z is linear in the weights, so that there is one minimum. How strong the penalty is,
is chosen on sections that the head has not seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stpredict.arrays import Bool, Float, Int
from stpredict.statistics.objectives import Objective
from stpredict.training.programmes import Decomposition, LinearMap, decompose

#: Times the sum of a gene's squared weights of standardised features, beside its mean loss over spots.
PENALTIES = np.logspace(-3, 3, 13)
#: Where no section is left to choose one.
USUAL_PENALTY = 10.0
MAX_ITERATIONS = 100
#: Less than this of the mean loss, which is about 1, is not worth another iteration.
TOLERANCE = 1e-7


def choose_penalty(features: Float, rows: Int, tested: Bool, objective: Objective, device: torch.device) -> float:
    """The penalty with the least loss on the spots that are `tested`, of a head fitted to the others.

    `features` are those of spots `rows`, of the objective. The usual one if either part is empty.
    """
    if tested.all() or not tested.any():
        return USUAL_PENALTY
    known = decompose(features[~tested])

    def loss(penalty: float) -> float:
        head = fit_decomposed(known, rows[~tested], objective, penalty, device)
        z = torch.as_tensor(head.predict(features[tested]), dtype=torch.float32)
        return float(objective.loss(z, torch.from_numpy(rows[tested])))

    return float(min(PENALTIES, key=loss))


def fit_linear(features: Float, rows: Int, objective: Objective, penalty: float, device: torch.device) -> LinearMap:
    """From features, of spots `rows` of the objective, to z."""
    return fit_decomposed(decompose(features), rows, objective, penalty, device)


def fit_decomposed(
    known: Decomposition, rows: Int, objective: Objective, penalty: float, device: torch.device
) -> LinearMap:
    """L-BFGS on weights of orthogonal directions, so scaled that a squared error with its penalty curves alike in all.

    That is solved by its first steps, and likelihoods, which curve much the same, soon.
    """
    n, n_genes = len(rows), objective.targets.shape[1]
    share = penalty * n / (known.s**2 + penalty * n)  # of the curvature that is the penalty's
    inputs, shares = (
        torch.as_tensor(x, dtype=torch.float32, device=device)
        for x in (np.sqrt(n) * known.u * np.sqrt(1 - share), share[:, None])
    )
    weight, bias = (torch.zeros(k, n_genes, device=device, requires_grad=True) for k in (len(share), 1))
    index = torch.from_numpy(rows)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=0, tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def penalised() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = objective.loss(inputs @ weight + bias, index) + (shares * weight**2).sum() / n_genes
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(penalised)  # type: ignore[no-untyped-call]
    found = weight.detach().double().cpu().numpy() * (np.sqrt(n) * np.sqrt(1 - share) / known.s)[:, None]
    return LinearMap(known.mean, known.scale, known.vt.T @ found, bias.detach().double().cpu().numpy()[0])
