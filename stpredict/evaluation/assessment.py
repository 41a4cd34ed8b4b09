"""How good a model or a result is on measured sections that it has not seen, beside baselines trained on those."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stpredict.arrays import Int, Labels
from stpredict.data.bins import Bins
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.section import demand_slides
from stpredict.data.tiles import Measured, Tiles, check_views, measured_in, read_tiles
from stpredict.data.twins import told_twins
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import DatasetError, UsageError, some
from stpredict.evaluation.maps import picture_of_patches
from stpredict.evaluation.naming import demand_shared_genes, in_the_panels_names
from stpredict.evaluation.scores import Assessment, Predicted, Shares, score_all
from stpredict.model.file import Model
from stpredict.model.reliability import held_out_correlation
from stpredict.prediction.pipeline import fixed_batches
from stpredict.prediction.surroundings import look_around_sections, predict_in_sections
from stpredict.result.file import Result
from stpredict.slides.slide import open_slide
from stpredict.slides.views import ONE_VIEW, Views
from stpredict.statistics.colour_texture import colour_texture_features
from stpredict.statistics.normalisation import Normalisation, find_normalisation

Report = Callable[[str], None]
#: Patches that the engine is checked on.
N_SAMPLE = 64
#: A correlation over fewer spots says nothing.
MIN_SECTION_SPOTS = 10
#: Of a spot's diameter, how far the predicted spot may lie from the measured one.
MATCHED_WITHIN = 0.5


def assess(
    what: Model | Result, dataset: Path, *, min_depth: int, allow_patient_leak: bool, engine: EngineRequest,
    report: Report,
) -> Assessment:  # fmt: skip
    """Score what a model predicts for the spots of a data set, or a result for those of its own slide.

    Spots of fewer than `min_depth` counts are left out, and sections that have hardly any others; baselines may train
    on all others of the data set. Patients that the model was trained on are not scored unless `allow_patient_leak`.
    All of it is in the model's unit. Raises UsageError for a unit that no measurement has, and where nobody is left to
    be scored; DatasetError for data that do not fit.
    """
    card = what.card if isinstance(what, Model) else what.provenance.get("card", {})
    name = what.name
    unit = (card if isinstance(what, Model) else what.provenance)["expression_unit"]
    normalisation = find_normalisation(unit)
    if normalisation is None:
        raise UsageError(f"{name}: predicts {unit!r}, and no measurement is known in that unit to compare it with.")

    if isinstance(what, Result):
        demand_own_slide(what, dataset)

    panel = list(dict.fromkeys([*panel_of(what), *card.get("panel", [])]))

    def scored_and_notes(found: Tiles | Measured) -> tuple[Int, list[str]]:
        scored = np.arange(len(found.section)) if isinstance(what, Model) else own_section(what, found)
        demand_shared_genes(name, panel_of(what), panel, found)
        return unseen(name, card, found, scored, allow_patient_leak)

    views = what.views if isinstance(what, Model) else None
    with tempfile.TemporaryDirectory() as folder:
        tiles = open_tiles(dataset, card, views, Path(folder), report, scored_and_notes)
        scored, about_patients = scored_and_notes(tiles)
        tiles, about_names = in_the_panels_names(panel, tiles)
        shares = shares_of(tiles, card, normalisation)
        deep = tiles.depth >= min_depth
        known: Int = np.flatnonzero(deep & (shares.depth > 0))
        own = np.intersect1d(scored, known)
        sections, n_own = np.unique(tiles.section[own], return_counts=True)
        small = sections[n_own < MIN_SECTION_SPOTS].tolist()
        own = own[~np.isin(tiles.section[own], small)]
        if isinstance(what, Model):
            check_slides_at_hand(what, dataset)
            predicted = predict_spots(what, tiles, own, shares, engine, report, dataset, Path(folder))
        else:
            predicted = match_spots(what, tiles, own, shares)
        report(f"colour and texture of {len(known)} patches, for the baselines")
        features = colour_texture_features((tiles.read_patch(i) for i in known), engine.threads)
        shallow = int((~deep[scored]).sum())
        uncounted = int(deep[scored].sum()) - len(np.intersect1d(scored, known))
        notes = [
            *told_twins(tiles.twins),
            *about_patients,
            f"{shallow} of {len(scored)} spots have fewer than {min_depth} counts and are left out",
        ]
        if uncounted:
            notes.append(f"{uncounted} further spots have no counts in the panel and are left out")
        if small:
            notes.append(f"sections with fewer than {MIN_SECTION_SPOTS} other spots are left out: {some(small)}")
        notes += about_names
        unmeasured = set(panel_of(what)) - set(tiles.genes)
        if unmeasured:
            notes.append(f"{len(unmeasured)} of the {len(panel_of(what))} predicted genes were not measured there")
        if normalisation.of_panel:
            lacking = len(set(card["panel"]) - set(tiles.genes))
            notes.append(f"depth is the sum over the panel, of whose genes {lacking} were not measured")
        unmatched = len(own) - len(predicted.index)
        if unmatched:
            notes.append(f"{unmatched} further spots have no predicted one within half a spot's width and are left out")
        um, trained_um = tiles.spot_diameter_um, card.get("spot_diameter_um", tiles.spot_diameter_um)
        if abs(um / trained_um - 1) > 0.05:
            notes.append(f"spots are {um:g} um wide; the model learnt from spots of {trained_um:g} um")
        leak = allow_patient_leak and bool(about_patients)
        found = score_all(f"{name} on {dataset.name}", notes, tiles, predicted, known, features, leak)
        pictures = {}
        for section in sorted({one.section for one in found.maps}):
            own = predicted.index[tiles.section[predicted.index] == section]
            pictures[section] = picture_of_patches(tiles, own)
        return replace(found, pictures=pictures)


def check_training_patients(name: str, card: dict[str, Any], patient: Labels, allow: bool) -> list[str]:
    """A note if the model was trained on patients of these names. Raises UsageError for it unless `allow`."""
    leak = sorted(training_patients(card) & set(patient.tolist()))
    if leak and not allow:
        raise UsageError(
            f"{name}: the model was trained on patients of these names ({', '.join(leak)}); if they are the same "
            "people, this says nothing of new patients. --allow-patient-leak scores them all the same."
        )
    return [f"LEAK: the model was trained on patients of these names: {', '.join(leak)}"] if leak else []


def unseen(
    name: str, card: dict[str, Any], found: Tiles | Measured, scored: Int, allow_patient_leak: bool
) -> tuple[Int, list[str]]:
    """The spots to be scored, those of patients that the model was not trained on if there are any, and a note.

    Raises UsageError where there are none, unless `allow_patient_leak`.
    """
    seen = np.isin(found.patient, sorted(training_patients(card)))
    seen = np.isin(found.kin, found.kin[seen])  # and who shares a section with one of them
    if allow_patient_leak or seen[scored].all():
        leak = check_training_patients(name, card, found.patient[scored], allow_patient_leak)
        known = sorted(set(card.get("training", {}).get("sections", [])) & set(found.section[scored].tolist()))
        return scored, [f"{note}; and on sections of these: {', '.join(known)}" if known else note for note in leak]
    left_out = sorted(set(found.patient[scored][seen[scored]].tolist()))
    note = f"not scored, as the model was trained on patients of these names: {', '.join(left_out)}"
    return scored[~seen[scored]], [note] if left_out else []


def training_patients(card: dict[str, Any]) -> set[str]:
    """Whom the model learnt from, by image or by counts alone."""
    training = card.get("training", {})
    return {*training.get("patients", []), *training.get("counts_only_patients", [])}


def panel_of(what: Model | Result) -> list[str]:
    return what.panel if isinstance(what, Model) else [gene.name for gene in what.genes]


def demand_own_slide(result: Result, dataset: Path) -> None:
    """Raises DatasetError where the only section of a folder is called otherwise than the result, and is another slide.

    Where a section has the result's name that is enough: its image may be another file of the same tissue.
    """
    if dataset.suffix == ".h5":
        return
    sections = read_dataset(dataset)
    if len(sections) > 1 or sections[0].name == result.name:
        return
    demand_slides(sections, f"a result of another name ({result.name})")
    with open_slide(sections[0].image) as slide:
        if slide.fingerprint() != result.provenance["slide"]["fingerprint"]:
            raise DatasetError(
                f"{result.path.name}: of the slide {result.name}, and {dataset} holds only section "
                f"{sections[0].name}, which is another one."
            )


def open_tiles(
    dataset: Path, card: dict[str, Any], views: Views | None, folder: Path, report: Report,
    check: Callable[[Measured], object],
) -> Tiles:  # fmt: skip
    """A data set's patches as the model wants them, cut into `folder` unless they are tiles already.

    Any `views` will do where nothing is to be predicted. What is to be cut is shown to `check` first, which may raise.
    """
    patch_px, mpp = card.get("patch_px", 224), card.get("mpp")
    if dataset.suffix != ".h5":
        path = folder / "dataset.tiles.h5"
        sections = read_dataset(dataset, bins_of(card))
        check(measured_in(sections, ()))
        write_tiles(sections, path, patch_px=patch_px, views=views or ONE_VIEW, mpp=mpp, report=report)
        return read_tiles(path)
    tiles = read_tiles(dataset)
    if tiles.patch_px != patch_px or (mpp and abs(tiles.mpp / mpp - 1) > 0.01):
        raise DatasetError(
            f"{dataset}: holds patches of {tiles.patch_px} px at {tiles.mpp:g} um/px, "
            f"the model wants {patch_px} px at {mpp:g} um/px; name the folder they were cut from, "
            f"or cut them again with --mpp {mpp:g}."
        )
    if views:
        check_views(tiles, views)
    return tiles


def bins_of(card: dict[str, Any]) -> Bins:
    """Bins are pooled to squares as large as the spots that a model learnt from, where they fit."""
    return Bins(like_um=card.get("spot_diameter_um"))


def shares_of(tiles: Tiles, card: dict[str, Any], normalisation: Normalisation) -> Shares:
    """What the shares that a model predicts are of, in a data set's spots."""
    panel = tiles.panel_counts(card["panel"]) if normalisation.of_panel else np.empty((len(tiles.spot), 0))
    return Shares(normalisation.depth(panel, tiles.depth), normalisation)


def check_slides_at_hand(model: Model, dataset: Path) -> None:
    """Raises DatasetError for a model that looks at slides around spots, and data that do not hold them."""
    if model.reads_slide and dataset.suffix == ".h5":
        raise DatasetError(
            f"{dataset}: does not hold the slides around the spots, which {model.name} looks at; name the folder that "
            "it was cut from."
        )


def predict_spots(
    model: Model, tiles: Tiles, index: Int, shares: Shares, request: EngineRequest, report: Report, dataset: Path,
    folder: Path,
) -> Predicted:  # fmt: skip
    """The model's prediction of some spots, for those of its genes that were measured.

    What a model wants to know beside the spots' patches is made from the data set's images, in the `folder`.
    """
    measured = set(tiles.genes)
    panel = [gene for gene in model.panel if gene in measured]
    if not len(index):
        raise DatasetError(f"{model.name}: no spot has counts enough there.")
    sample = tiles.read_patches(index[np.unique(np.linspace(0, len(index) - 1, N_SAMPLE).astype(int))])
    engine = open_engine(model, request, sample, report)
    columns = [model.panel.index(gene) for gene in panel]
    if engine.two_passes:
        sections = read_dataset(dataset, bins_of(model.card))
        known = look_around_sections(sections, tiles, engine.two_passes, model.card["pitch_um"], folder, report)
        expression = predict_in_sections(engine.two_passes, known, tiles, index)[:, columns]
    else:
        patches = (tiles.read_patches([i])[0] for i in index)
        batches = engine.infer(fixed_batches(patches, engine.batch_size, sample.shape[1:]))
        expression = np.concatenate([batch[:, columns] for batch in batches])[: len(index)].astype(float)
    return Predicted(index, panel, expression, held_out_correlation(model.card)[columns], shares)


def own_section(result: Result, tiles: Tiles | Measured) -> Int:
    """The measured spots of the section that has the result's name, or the only one."""
    sections = sorted(set(tiles.section.tolist()))
    if len(sections) > 1 and result.name not in sections:
        raise DatasetError(f"{result.path.name}: no section is called {result.name} ({', '.join(sections)}).")
    section = result.name if result.name in sections else sections[0]
    return np.flatnonzero(tiles.section == section)


def match_spots(result: Result, tiles: Tiles, own: Int, shares: Shares) -> Predicted:
    """A result's expression at those measured spots that it has a predicted one near to."""
    mpp = np.array(result.canvas.mpp)
    far, nearest = cKDTree(result.spots.centres * mpp).query(tiles.centres[own] * mpp)
    matched = far <= MATCHED_WITHIN * result.canvas.spot_diameter_um
    measured = set(tiles.genes)
    genes = [gene for gene in result.genes if gene.name in measured]
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
        np.array([gene.held_out_correlation for gene in genes]), shares,
    )  # fmt: skip
