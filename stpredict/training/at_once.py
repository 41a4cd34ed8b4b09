"""Fit networks whose features are fixed at once: of a dictionary, a frozen encoder, or HIPT's lower networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.networks import FITTED
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.encoder import Encoded
from stpredict.networks.hipt import Hipt
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.objectives import Objective
from stpredict.training.dictionary import learn_windows
from stpredict.training.head_sums import Describe, are_many, spread_of
from stpredict.training.heads import describe_patches, fit_map_by, map_from_sums, write_head
from stpredict.training.hierarchy import with_genes
from stpredict.training.linear_head import choose_penalty, fit_linear
from stpredict.training.panel_counts import objective_of
from stpredict.training.panels import choose_genes
from stpredict.training.run import Run, Trained
from stpredict.training.settings import Settings
from stpredict.training.shared_sums import SharedSums


def fit_at_once(
    run: Run, sections: Sequence[str], validation: Sequence[str], objective: Objective, panel: list[str],
    in_training: Bool,
) -> Trained:  # fmt: skip
    """Fit the head of a network that describes patches. `validation` chooses the penalty of a linear head."""
    tiles, settings = run.tiles, run.settings
    network = new_described_network(run, sections, len(panel))
    describe, rows = describe_by(run, network), np.flatnonzero(in_training)
    if settings.head != "linear":
        normalisation = NORMALISATIONS[settings.normalisation]
        found, used = fit_map_by(describe, rows, tiles, panel, objective, normalisation)
        write_head(network, found)
        return Trained(network, objective, panel, sections, 0, counts_from=used)
    features = describe(rows)
    unseen = np.flatnonzero(np.isin(tiles.section, validation) & ~in_training & (objective.depth > 0))
    every = np.concatenate([rows, unseen])  # in a paper's protocol the validation is not part of the training
    all_features = np.concatenate([features, describe(unseen)]) if len(unseen) else features
    tested = np.isin(tiles.section[every], validation)
    penalty = choose_penalty(all_features, every, tested, objective, run.device)
    write_head(network, fit_linear(features, rows, objective, penalty, run.device))
    return Trained(network, objective, panel, sections, 0, penalty=penalty)


def fit_by_sums(
    run: Run, sections: Sequence[str], panel: list[str], depth: Float, in_training: Bool
) -> Trained:  # fmt: skip
    """As `fit_at_once`, from sums that other parts of the run may share. `depth` is that of all spots."""
    tiles, normalisation = run.tiles, NORMALISATIONS[run.settings.normalisation]
    network = new_described_network(run, sections, len(panel))
    describe = describe_by(run, network)
    shared = run.sums if run.sums and run.sums.serves(sections, panel) else None
    shared = shared or SharedSums.of_parts(tiles, [sections], panel, describe)
    kinds = shared.of(sections, panel)
    spread = spread_of(kinds, len(panel))
    objective = objective_of(shared.counts, panel, spread, depth, in_training, normalisation.per)
    found, used = map_from_sums(
        kinds, shared.observations(sections, panel), 1 / spread, normalisation, shared.covariances
    )
    write_head(network, found)
    return Trained(network, objective, panel, sections, 0, counts_from=used)


def shares_sums(settings: Settings, n_spots: int) -> bool:
    """Whether a head on features of so many spots is fitted from sums that parts of a run may share."""
    return (
        are_many(n_spots)
        and settings.architecture in FITTED
        and settings.objective == "residuals"
        and settings.head != "linear"
        and not settings.smooth_labels
        and not NORMALISATIONS[settings.normalisation].of_panel
    )


def with_sums(run: Run, parts: Sequence[Sequence[str]]) -> Run:
    """The run with sums for its parts, if these are all that heads on the run's features need.

    Each part is the sections that it trains on.
    """
    encoded, tiles = run.encoded, run.tiles
    if encoded is None:
        return run
    spots = [int((np.isin(tiles.section, part) & (tiles.depth > 0)).sum()) for part in parts]
    large = [part for part, n in zip(parts, spots, strict=True) if shares_sums(run.settings, n)]
    if len(large) < 2:
        return run
    panels = [choose_genes(tiles, run.panel, part, run.settings.seed) for part in large]
    genes, describe = sorted(set().union(*panels)), lambda rows: np.asarray(encoded[rows], dtype=float)
    return replace(run, sums=SharedSums.of_parts(tiles, large, genes, describe))


def new_described_network(run: Run, sections: Sequence[str], n_genes: int) -> Dictionary | Encoded | Hipt:
    """A network that describes patches, with an unfitted head: the run's encoder, or a dictionary of `sections`."""
    if isinstance(run.encoder, Hipt):
        return with_genes(run.encoder, n_genes)
    if not isinstance(run.encoder, Encoded):
        return learn_windows(run.tiles, sections, n_genes, run.settings.seed)
    network = Encoded(replace(run.encoder.config, n_genes=n_genes)).to(run.device)
    network.encoder = run.encoder.encoder
    return network


def describe_by(run: Run, network: Dictionary | Encoded | Hipt) -> Describe:
    """What gives the features of spots: those that the run has, or the network."""
    encoded = run.encoded
    if encoded is None:
        return lambda rows: describe_patches(network, run.tiles, rows, run.device)
    return lambda rows: np.asarray(encoded[rows], dtype=float)
