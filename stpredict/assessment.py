"""How good a model or a result is on measured sections that it has not seen, beside baselines trained on those."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stpredict import metrics
from stpredict.arrays import Float, Int
from stpredict.cards import held_out_correlation
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles, read_tiles, write_tiles
from stpredict.engines import EngineRequest, open_engine
from stpredict.errors import DatasetError, UsageError
from stpredict.evaluation import RIDGE, TRUE_DEPTH, Split, predict_baselines
from stpredict.features import colour_texture_features
from stpredict.objectives import make_objective
from stpredict.prediction import fixed_batches
from stpredict.result import Result
from stpredict.weights import Model

Report = Callable[[str], None]
#: Patches that the engine is checked on.
N_SAMPLE = 64
#: From so many patients on, intervals are given; below, single points.
PATIENTS_FOR_INTERVALS = 6
BOOTSTRAPS = 2000
#: Of a spot's diameter, how far the predicted spot may lie from the measured one.
MATCHED_WITHIN = 0.5
MODEL = "model"


@dataclass(frozen=True)
class Assessment:
    """Scores by row and name, scores per gene by name, and in `notes` what to know of them."""

    title: str
    notes: list[str]
    rows: dict[str, dict[str, Any]]
    genes: list[str]
    per_gene: dict[str, Float]


@dataclass(frozen=True)
class Predicted:
    """Expression of the data set's spots `index` for the genes `panel`, and each gene's correlation in the card."""

    index: Int
    panel: list[str]
    expression: Float
    in_card: Float


def assess(
    what: Model | Result, dataset: Path, *, min_depth: int, allow_patient_leak: bool, engine: EngineRequest,
    report: Report,
) -> Assessment:  # fmt: skip
    """Score what a model predicts for the spots of a data set, or a result for those of its own slide.

    Spots of fewer than `min_depth` counts are left out. Raises UsageError for patients that the model was trained on
    unless `allow_patient_leak`, DatasetError for data that do not fit.
    """
    card = what.card if isinstance(what, Model) else what.provenance.get("card", {})
    name = what.name
    with tempfile.TemporaryDirectory() as folder:
        tiles = open_tiles(dataset, card, Path(folder), report)
        scored = np.arange(len(tiles.spot)) if isinstance(what, Model) else own_section(what, tiles)
        leak = sorted(set(card.get("training", {}).get("patients", [])) & set(tiles.patient[scored].tolist()))
        if leak and not allow_patient_leak:
            raise UsageError(
                f"{name}: the model was trained on patients of these names ({', '.join(leak)}); if they are the same "
                "people, this says nothing of new patients. --allow-patient-leak scores them all the same."
            )
        deep = scored[tiles.depth[scored] >= min_depth]
        if isinstance(what, Model):
            predicted = predict_spots(what, tiles, deep, engine, report)
        else:
            predicted = match_spots(what, tiles, deep)
        report(f"colour and texture of {len(predicted.index)} patches, for the baselines")
        features = colour_texture_features((tiles.read_patches([i])[0] for i in predicted.index), engine.threads)
    notes = [f"LEAK: the model was trained on patients of these names: {', '.join(leak)}"] if leak else []
    shallow = len(scored) - len(deep)
    notes.append(f"{shallow} of {len(scored)} spots have fewer than {min_depth} counts and are left out")
    unmatched = len(deep) - len(predicted.index)
    if unmatched:
        notes.append(f"{unmatched} further spots have no predicted one within half a spot's width and are left out")
    trained_um = card.get("spot_diameter_um", tiles.spot_diameter_um)
    if abs(tiles.spot_diameter_um / trained_um - 1) > 0.05:
        notes.append(f"spots are {tiles.spot_diameter_um:g} um wide; the model learnt from spots of {trained_um:g} um")
    return score_all(f"{name} on {dataset.name}", notes, tiles, predicted, features)


def open_tiles(dataset: Path, card: dict[str, Any], folder: Path, report: Report) -> Tiles:
    """A data set's patches as the model wants them, cut into `folder` unless they are tiles already."""
    patch_px, mpp = card.get("patch_px", 224), card.get("mpp")
    if dataset.suffix != ".h5":
        path = folder / "dataset.tiles.h5"
        write_tiles(read_dataset(dataset), path, patch_px=patch_px, mpp=mpp, report=report)
        return read_tiles(path)
    tiles = read_tiles(dataset)
    if tiles.patch_px != patch_px or (mpp and abs(tiles.mpp / mpp - 1) > 0.01):
        raise DatasetError(
            f"{dataset}: holds patches of {tiles.patch_px} px at {tiles.mpp:g} um/px, "
            f"the model wants {patch_px} px at {mpp:g} um/px; name the folder they were cut from, "
            f"or cut them again with --mpp {mpp:g}."
        )
    return tiles


def predict_spots(model: Model, tiles: Tiles, index: Int, request: EngineRequest, report: Report) -> Predicted:
    """The model's prediction of some spots, for those of its genes that were measured."""
    measured = set(tiles.genes)
    panel = [gene for gene in model.panel if gene in measured]
    if not panel or not len(index):
        raise DatasetError(f"{model.name}: none of its genes was measured there, or no spot has counts enough.")
    sample = tiles.read_patches(index[np.unique(np.linspace(0, len(index) - 1, N_SAMPLE).astype(int))])
    engine = open_engine(model, request, sample, report)
    patches = (tiles.read_patches([i])[0] for i in index)
    batches = engine.infer(fixed_batches(patches, engine.batch_size, sample.shape[1:]))
    columns = [model.panel.index(gene) for gene in panel]
    expression = np.concatenate([batch[:, columns] for batch in batches])[: len(index)].astype(float)
    return Predicted(index, panel, expression, held_out_correlation(model.card)[columns])


def own_section(result: Result, tiles: Tiles) -> Int:
    """The measured spots of the section that has the result's name, or the only one."""
    sections = sorted(set(tiles.section.tolist()))
    if len(sections) > 1 and result.name not in sections:
        raise DatasetError(f"{result.path.name}: no section is called {result.name} ({', '.join(sections)}).")
    section = result.name if result.name in sections else sections[0]
    return np.flatnonzero(tiles.section == section)


def match_spots(result: Result, tiles: Tiles, own: Int) -> Predicted:
    """A result's expression at those measured spots that it has a predicted one near to."""
    mpp = np.array(result.canvas.mpp)
    far, nearest = cKDTree(result.spots.centres * mpp).query(tiles.centres[own] * mpp)
    matched = far <= MATCHED_WITHIN * result.canvas.spot_diameter_um
    measured = set(tiles.genes)
    genes = [gene for gene in result.genes if gene.name in measured]
    if not genes:
        raise DatasetError(f"{result.path.name}: none of its genes was measured there.")
    if matched.sum() < 3:
        raise DatasetError(
            f"{result.path.name}: {matched.sum()} of {len(own)} measured spots lie within "
            f"{MATCHED_WITHIN * result.canvas.spot_diameter_um:g} um of a predicted one; predict at their positions "
            "with --spots."
        )
    expression = np.stack([result.expression(gene.name)[nearest[matched]] for gene in genes], axis=1).astype(float)
    read = np.isfinite(expression).all(axis=1)
    return Predicted(
        own[matched][read], [gene.name for gene in genes], expression[read],
        np.array([gene.held_out_correlation for gene in genes]),
    )  # fmt: skip


def score_all(title: str, notes: Sequence[str], tiles: Tiles, predicted: Predicted, features: Float) -> Assessment:
    """Scores of the prediction and of baselines that were trained on the data set's other patients or sections."""
    index = predicted.index
    section, patient, depth = tiles.section[index], tiles.patient[index], tiles.depth[index]
    counts = tiles.panel_counts(predicted.panel)[index]
    n_patients, n_sections = len(set(patient)), len(set(section))
    by, groups = ("patients", patient) if n_patients > 1 else ("sections", section)
    rows = {MODEL: predicted.expression}
    if len(set(groups)) > 1:
        rows = {**_baselines(counts, depth, section, patient, groups, features), **rows}
        how = f"baselines were trained on the data set's other {by}, which the model did not have"
    else:
        rows = {TRUE_DEPTH: np.tile(np.log1p(depth)[:, None], counts.shape[1]), **rows}
        how = "baselines that need training are missing: there is one section"
    ceiling = metrics.noise_ceiling(counts, depth, section)
    scored = {name: _score(values, counts, depth, section, patient, ceiling, name) for name, values in rows.items()}
    noise = metrics.counts_without_biology(counts, depth, section)
    by_chance = metrics.depth_controlled_correlation(predicted.expression, noise, depth, section)
    correlation = {name: _depth_controlled(values, counts, depth, section) for name, values in rows.items()}
    unknown = int(np.isnan(correlation[MODEL]).sum())
    sentences = [
        f"spots: {len(index)}, sections: {n_sections}, patients: {n_patients}, genes: {len(predicted.panel)}"
        f"{f', of which {unknown} were never counted and have no score' if unknown else ''}",
        *notes,
        how,
        f"noise ceiling {_mean(ceiling)}; on counts without biology the model scores {_mean(by_chance)}",
        _about_intervals(n_patients),
    ]
    per_gene = {
        "depth_controlled": correlation[MODEL],
        "noise_ceiling": ceiling,
        "log_cpm_pearson": metrics.log_cpm_correlation(predicted.expression, counts, depth, section),
        "log_cpm_spearman": metrics.log_cpm_rank_correlation(predicted.expression, counts, depth, section),
        **({"ridge_depth_controlled": correlation[RIDGE]} if RIDGE in correlation else {}),
        "held_out_in_card": predicted.in_card,
    }
    if RIDGE in correlation:
        known = np.isfinite(correlation[MODEL])
        share = float((correlation[MODEL] > correlation[RIDGE])[known].mean()) if known.any() else float("nan")
        sentences.append(f"the model beats ridge on {share:.0%} of the genes")
    ours = scored[MODEL]["depth_controlled"]
    ahead = [name for name, row in scored.items() if name != MODEL and (row["depth_controlled"] or 0) >= (ours or 0)]
    if ahead:
        sentences.append(f"the model has learnt nothing that {' and '.join(ahead)} had not")
    return Assessment(title, sentences, scored, predicted.panel, per_gene)


def _baselines(
    counts: Float, depth: Float, section: np.ndarray, patient: np.ndarray, groups: np.ndarray, features: Float
) -> dict[str, Float]:
    """Each group's spots as predicted from the others; rows that not every group has are left out."""
    parts: list[tuple[np.ndarray, dict[str, Float]]] = []
    for group in np.unique(groups):
        test = groups == group
        objective = make_objective("residuals", counts, depth, section, ~test)
        split = Split(counts, depth, section, patient, ~test, test)
        parts.append((test, predict_baselines(split, features, objective)))
    names = [name for name in parts[0][1] if all(name in predicted for _, predicted in parts)]
    rows = {name: np.empty_like(counts) for name in names}
    for test, predicted in parts:
        for name in names:
            rows[name][test] = predicted[name]
    return rows


def _score(
    predicted: Float, counts: Float, depth: Float, section: np.ndarray, patient: np.ndarray, ceiling: Float, name: str
) -> dict[str, Any]:
    """One row of the table: means over genes, and the quartiles of the first score."""
    correlation = _depth_controlled(predicted, counts, depth, section)
    known = correlation[np.isfinite(correlation)]
    per_spot, rmse = metrics.spot_correlation(predicted, counts, depth) if name != TRUE_DEPTH else (None, None)
    return {
        "depth_controlled": _mean(correlation),
        "interval": _interval(predicted, counts, depth, section, patient),
        "quartiles": [round(float(q), 4) for q in np.percentile(known, (25, 50, 75))] if len(known) else None,
        "of_the_ceiling": float(np.nanmean(correlation) / np.nanmean(ceiling)) if np.nansum(ceiling) > 0 else None,
        "log_cpm_pearson": _mean(metrics.log_cpm_correlation(predicted, counts, depth, section)),
        "log_cpm_spearman": _mean(metrics.log_cpm_rank_correlation(predicted, counts, depth, section)),
        "log_cpm_per_spot": per_spot,
        "log_cpm_rmse": rmse,
    }


def _depth_controlled(predicted: Float, counts: Float, depth: Float, section: np.ndarray) -> Float:
    return metrics.depth_controlled_correlation(predicted, counts, depth, section)


def _interval(
    predicted: Float, counts: Float, depth: Float, section: np.ndarray, patient: np.ndarray
) -> list[float] | None:
    """95 % bootstrap interval over patients of the mean depth-controlled correlation; None for few patients."""
    patients = np.unique(patient)
    if len(patients) < PATIENTS_FOR_INTERVALS:
        return None
    means = np.array([
        np.nanmean(_depth_controlled(predicted[own], counts[own], depth[own], section[own]))
        for own in (patient == name for name in patients)
    ])  # fmt: skip
    drawn = np.random.default_rng(0).integers(0, len(means), (BOOTSTRAPS, len(means)))
    low, high = np.percentile(np.nanmean(means[drawn], axis=1), (2.5, 97.5))
    return [round(float(low), 4), round(float(high), 4)]


def _about_intervals(n_patients: int) -> str:
    if n_patients >= PATIENTS_FOR_INTERVALS:
        return f"intervals are 95 % bootstrap intervals over {n_patients} patients"
    people = "one patient" if n_patients == 1 else f"{n_patients} patients"
    return f"{people}: too few for an interval, so these are single points"


def _mean(values: Float) -> float | None:
    return round(float(np.nanmean(values)), 4) if np.isfinite(values).any() else None
