"""Reduce a model to some of its genes, so that the others are not computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stpredict.arrays import Int
from stpredict.data.panel import match_genes
from stpredict.model.file import SELF_TEST, Model


def narrow(model: Model, genes: Sequence[str]) -> tuple[Model, Int]:
    """A model that computes as little as it can for some `genes`, and the positions of these in its panel.

    It is the model itself if the network is not a published one, as its head is small, or if the head is a program.
    """
    columns = np.array(match_genes(genes, model.panel))
    parameters = model.card["parameters"]
    if not model.is_published or len(columns) == len(model.panel):
        return model, columns
    from stpredict.networks.published_head import KINDS  # slow to import

    axes = {f"head.{name}": axis for name, axis in KINDS[parameters["head"]["kind"]][1].GENE_AXES.items()}
    if not axes:
        return model, columns
    axes[SELF_TEST] = 1
    tensors = {
        name: np.take(tensor, columns, axis=axes[name]) if name in axes else tensor
        for name, tensor in model.tensors.items()
    }
    card = {
        **model.card,
        "panel": list(genes),
        "parameters": {**parameters, "n_genes": len(columns)},
        "genes": dict.fromkeys(model.card["genes"]),
        "held_out": [],
        "intervals": [],
        "reliability": None,
    }
    sha256 = hashlib.sha256(f"{model.sha256} {json.dumps(list(genes))}".encode()).hexdigest()
    return replace(model, card=card, tensors=tensors, sha256=sha256), np.arange(len(columns))
