"""The protocol of HEST-Bench (Jaume et al. 2024, NeurIPS Datasets and Benchmarks): a network as an encoder.

Ridge regression predicts ln(1 + raw counts) of 50 highly variable genes from principal components of its features, with
patients held out in turn. Raw counts are mostly depth, so do not compare these scores with others of this program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stpredict.arrays import Float, Labels
from stpredict.data.reading import AS_IT_IS, Reading
from stpredict.data.tiles import Measured, Tiles, columns
from stpredict.data.twins import told_twins
from stpredict.engines.eager import load_network
from stpredict.errors import DatasetError, UsageError
from stpredict.evaluation.assessment import about_broken, check_training_patients, open_tiles
from stpredict.evaluation.splits import TRUE_DEPTH
from stpredict.machine import limit_threads
from stpredict.model.file import Model
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.statistics.metrics import correlation_per_gene
from stpredict.storage.files import atomic_path

Report = Callable[[str], None]
N_GENES = 50
N_COMPONENTS = 256
#: A gene must be counted in this share of every section's spots.
MIN_SPOTS = 0.1
N_BINS = 20
BATCH = 64
JSON_SUFFIX = ".hest.json"


@dataclass(frozen=True)
class HestScores:
    """For each row and held-out patient, the mean correlation over genes."""

    title: str
    notes: list[str]
    genes: list[str]
    rows: dict[str, dict[str, float]]
    left_out: dict[str, str] = field(default_factory=dict)  # sections that could not be read, and why


def assess_hest(
    model: Model, dataset: Path, folder: Path, *, allow_patient_leak: bool, threads: int, report: Report,
    reading: Reading = AS_IT_IS,
) -> HestScores:  # fmt: skip
    """Score a model's features on a data set, beside simple features and the true depth. Tiles are cut into `folder`.

    Raises UsageError for patients that the model was trained on, unless `allow_patient_leak`, and DatasetError if there
    is one patient, or no gene that the protocol can use.
    """
    if model.reads_slide:
        raise UsageError(f"--protocol hest scores features of patches alone, and {model.name} looks at whole slides.")

    def leak(found: Tiles | Measured) -> list[str]:
        notes = check_training_patients(model.name, model.card, found.patient, allow_patient_leak)
        if len(set(found.kin)) < 2:
            raise DatasetError(f"{dataset}: holds one patient; this protocol holds each out in turn.")
        return notes

    tiles, left_out = open_tiles(dataset, model.card, model.views, folder, report, leak, reading, threads)
    notes = [*told_twins(tiles.twins), *about_broken(left_out), *leak(tiles)]
    genes = choose_hest_genes(tiles)
    targets = np.log1p(tiles.panel_counts(genes))
    report(f"features of {len(tiles.spot)} patches")
    colour = colour_texture_features((tiles.read_patch(i) for i in range(len(tiles.spot))), threads)
    rows = {
        TRUE_DEPTH: score_depth(tiles.depth, targets, tiles.kin),
        "52 colour and texture features": score_features(colour, targets, tiles.kin),
        f"features of {model.name}": score_features(network_features(model, tiles, threads), targets, tiles.kin),
    }
    notes += [
        f"{len(genes)} genes, chosen on all sections as the benchmark does, so that the test has a say in them",
        "ln(1 + raw counts) is mostly depth: no number here compares with those of ln(1 + CPM)",
    ]
    return HestScores(f"{model.name} on {dataset.name}, protocol hest", notes, genes, rows, left_out)


def choose_hest_genes(tiles: Tiles) -> list[str]:
    """Of the genes counted in a tenth of every section's spots, the 50 with the highest dispersion for their mean.

    The dispersion is that of scanpy's flavour "seurat" (Satija et al. 2015, Nature Biotechnology 33:495): the logarithm
    of variance over mean, standardised within 20 bins of the mean. Raises DatasetError if no gene is that frequent.
    """
    sections = tiles.counts_of(np.unique(tiles.section))
    often = np.array([(part > 0).sum(axis=0) >= np.ceil(MIN_SPOTS * part.shape[0]) for part in sections]).all(axis=0)
    known = np.flatnonzero(often)
    if not len(known):
        raise DatasetError(f"{tiles.path.name}: no gene is counted in a tenth of every section's spots.")
    excess = standardised_dispersion(columns(tiles.counts, tiles.genes, [tiles.genes[i] for i in known]))
    first = np.argsort(-np.nan_to_num(excess, nan=-np.inf), kind="stable")[:N_GENES]
    return sorted(tiles.genes[i] for i in known[first])


def standardised_dispersion(counts: Float) -> Float:
    """Per gene, ln(variance / mean), standardised among genes with similar mean counts; NaN for constant genes."""
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    dispersion = np.log(np.divide(variance, mean, out=np.full_like(mean, np.nan), where=(mean > 0) & (variance > 0)))
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), N_BINS + 1)
    own_bin = np.clip(np.searchsorted(edges, level, side="left") - 1, 0, N_BINS - 1)
    excess: Float = np.full_like(mean, np.nan)
    for number in np.unique(own_bin):
        own = (own_bin == number) & np.isfinite(dispersion)
        if own.sum() == 1:
            excess[own] = 1.0  # scanpy's choice for a gene alone in its bin
        elif own.any():
            excess[own] = (dispersion[own] - dispersion[own].mean()) / dispersion[own].std(ddof=1)
    return excess


def score_features(features: Float, targets: Float, patient: Labels) -> dict[str, float]:
    """Mean correlation over genes per held-out patient, for ridge regression on up to 256 principal components.

    As in the benchmark, there is no intercept and alpha = 100 / (components x genes). A patient's sections are pooled.
    A gene that is constant in a patient has no correlation there, and the patient's mean leaves it out.
    """
    found = {}
    for name in np.unique(patient):
        test = patient == name
        n = min(N_COMPONENTS, features.shape[1], int((~test).sum()))
        reduce = make_pipeline(StandardScaler(), PCA(n, random_state=0)).fit(features[~test])
        ridge = Ridge(100 / (n * targets.shape[1]), fit_intercept=False, solver="lsqr", max_iter=1000, random_state=0)
        ridge.fit(reduce.transform(features[~test]), targets[~test])
        predicted = ridge.predict(reduce.transform(features[test])).reshape(int(test.sum()), -1)
        found[str(name)] = float(np.nanmean(correlation_per_gene(predicted, targets[test])))
    return found


def score_depth(depth: Float, targets: Float, patient: Labels) -> dict[str, float]:
    """The score of the log of the true depth alone, which no image shows."""
    by_depth = np.tile(np.log1p(depth)[:, None], targets.shape[1])
    parts = ((str(name), patient == name) for name in np.unique(patient))
    return {name: float(np.nanmean(correlation_per_gene(by_depth[own], targets[own]))) for name, own in parts}


def network_features(model: Model, tiles: Tiles, threads: int) -> Float:
    """The features that the network's head reads, n x width, in fp32 on the CPU."""
    limit_threads(threads)
    network = load_network(model)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tiles.spot), BATCH):
            patches = torch.from_numpy(tiles.read_patches(np.arange(start, min(start + BATCH, len(tiles.spot)))))
            parts.append(network.features(patches).numpy())
    features: Float = np.concatenate(parts).astype(np.float64)
    return features


def show_hest(scores: HestScores) -> Iterator[str]:
    """The table, a column per held-out patient, and notes on it."""
    yield scores.title
    patients = list(next(iter(scores.rows.values())))
    yield f"{'correlation per gene':40}{'mean':>8}" + "".join(f"{name[:10]:>12}" for name in patients)
    for row, found in scores.rows.items():
        mean = np.mean(list(found.values()))
        yield f"{row:40}{mean:>8.3f}" + "".join(f"{found[name]:>12.3f}" for name in patients)
    for note in scores.notes:
        yield f"- {note}"


def write_hest(scores: HestScores, path: Path, what: dict[str, str]) -> None:
    """Write everything as JSON; `what` says what was scored."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**what, **asdict(scores)}, indent=1))
