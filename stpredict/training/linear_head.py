"""A linear head fitted to any objective: it minimises the loss plus a penalty on the weights.

Every objective is convex in z, and z is linear in the weights, so there is one minimum. Sections that the head has not
seen choose the strength of the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stpredict.arrays import Bool, Float, Int
from stpredict.statistics.blocks import blocks
from stpredict.statistics.losses import Loss
from stpredict.statistics.masks import Alike
from stpredict.statistics.objectives import Objective
from stpredict.statistics.regression import Directions, LinearMap, directions_where_known, join_maps
from stpredict.statistics.targets import Chosen

#: Factors of the sum of a gene's squared weights (of standardised features), added to its mean loss over spots.
PENALTIES = np.logspace(-3, 3, 13)
#: The penalty if no section is left to choose one.
USUAL_PENALTY = 10.0
MAX_ITERATIONS = 100
#: A gain of less than this in the mean loss, which is about 1, is not worth another iteration.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Part:
    """Genes that the same spots measured: the directions of these spots' features, their rows, and the genes' loss."""

    genes: Alike
    known: Directions
    rows: Int
    loss: Loss
    n_genes: int


def parts_of(features: Float, rows: Int, objective: Objective) -> list[Part]:
    """The parts of a head that are fitted separately; `features` are those of spots `rows` of the objective."""
    genes_of = np.arange(objective.targets.shape[1])
    return [
        Part(genes, known, rows[genes.rows], objective.loss.of(genes.columns), len(genes_of[genes.columns]))
        for genes, known in directions_where_known(features, Chosen(objective.targets, rows))
    ]


def choose_penalty(features: Float, rows: Int, tested: Bool, objective: Objective, device: torch.device) -> float:
    """The penalty whose head, fitted to the other spots, has the least loss on those that are `tested`.

    `features` are those of spots `rows` of the objective. The usual penalty if either part is empty or unmeasured.
    """
    chosen, features_of = rows[tested], features[tested]
    some = list(blocks(len(chosen), objective.targets.shape[1]))
    known = [int(np.isfinite(objective.targets[chosen[part]]).sum()) for part in some]
    if tested.all() or not sum(known):
        return USUAL_PENALTY
    parts = parts_of(features[~tested], rows[~tested], objective)
    if not parts:
        return USUAL_PENALTY

    def loss(penalty: float) -> float:
        head = fit_parts(parts, objective, penalty, device)
        total = 0.0
        for part, n in zip(some, known, strict=True):
            z = torch.as_tensor(head.predict(features_of[part]), dtype=torch.float32)
            total += n * float(objective.loss(z, torch.from_numpy(chosen[part])))
        return total / sum(known)

    return float(min(PENALTIES, key=loss))


def fit_linear(features: Float, rows: Int, objective: Objective, penalty: float, device: torch.device) -> LinearMap:
    """The map from features (of spots `rows` of the objective) to z; 0 for genes that none of these spots measured."""
    return fit_parts(parts_of(features, rows, objective), objective, penalty, device)


def fit_parts(parts: Sequence[Part], objective: Objective, penalty: float, device: torch.device) -> LinearMap:
    """Fit each gene's head on the spots that measured it; returns all heads as one map."""
    found = [(part.genes, fit_decomposed(part, penalty, device)) for part in parts]
    if parts[0].genes.whole:
        return found[0][1]
    joined = join_maps(found, objective.targets.shape[1])
    return replace(joined, bias=np.nan_to_num(joined.bias))


def fit_decomposed(part: Part, penalty: float, device: torch.device) -> LinearMap:
    """L-BFGS on weights of orthogonal directions, scaled so that squared error plus penalty curves alike in each.

    The first steps solve a squared error. Likelihoods curve much the same, and take few more.
    """
    known, n, n_genes = part.known, len(part.rows), part.n_genes
    share = penalty * n / (known.s**2 + penalty * n)  # the penalty's part of the curvature
    inputs, shares = (
        torch.as_tensor(x, dtype=torch.float32, device=device)
        for x in (np.sqrt(n) * known.u * np.sqrt(1 - share), share[:, None])
    )
    weight, bias = (torch.zeros(k, n_genes, device=device, requires_grad=True) for k in (len(share), 1))
    index, some = torch.from_numpy(part.rows), list(blocks(n, n_genes))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=0, tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def penalised() -> Tensor:
        optimizer.zero_grad()
        total = (shares * weight**2).sum() / n_genes
        total.backward()  # type: ignore[no-untyped-call]
        for rows in some:  # all of them measured all of the genes
            loss = part.loss(inputs[rows] @ weight + bias, index[rows]) * (len(index[rows]) / n)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + loss.detach()
        return total

    optimizer.step(penalised)  # type: ignore[no-untyped-call]
    found = weight.detach().double().cpu().numpy() * (np.sqrt(n) * np.sqrt(1 - share) / known.s)[:, None]
    return LinearMap(known.mean, known.scale, known.vt.T @ found, bias.detach().double().cpu().numpy()[0])
