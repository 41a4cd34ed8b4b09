"""Score a model or a result on measured sections that it has not seen, beside baselines trained on these sections."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stpredict.arrays import Int, Labels
from stpredict.data.bins import Bins
from stpredict.data.cutting import settle_cut, write_tiles
from stpredict.data.dataset import read_asked, read_dataset
from stpredict.data.reading import AS_IT_IS, Reading
from stpredict.data.section import demand_slides
from stpredict.data.section_files import Cut
from stpredict.data.section_patches import SectionPatches
from stpredict.data.tiles import Measured, Tiles, check_views, measured_in, read_tiles
from stpredict.data.twins import told_twins
from stpredict.data.whole_depth import depth_of_shares
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import DatasetError, UsageError, counted, some
from stpredict.evaluation.described import MOST_DESCRIBED, describe_drawn
from stpredict.evaluation.maps import picture_of_patches
from stpredict.evaluation.measured import Predicted, Shares
from stpredict.evaluation.naming import demand_shared_genes, in_the_panels_names
from stpredict.evaluation.scores import Assessment, score_all
from stpredict.machine import limit_threads
from stpredict.model.file import Model
from stpredict.model.reliability import held_out_correlation
from stpredict.prediction.pipeline import fixed_batches
from stpredict.prediction.relative import measured_in_training
from stpredict.prediction.surroundings import look_around_sections, predict_in_sections
from stpredict.result.file import Result
from stpredict.slides.slide import open_slide
from stpredict.slides.views import ONE_VIEW, Views
from stpredict.statistics.normalisation import NORMALISATIONS, find_normalisation

Report = Callable[[str], None]
#: With more of its genes unmeasured than this part, sections' depths are of another whole than a model's.
MANY_UNMEASURED = 0.1
#: The number of patches that check the engine.
N_SAMPLE = 64
#: A correlation over fewer spots means nothing.
MIN_SECTION_SPOTS = 10
#: The greatest distance between a predicted spot and the measured one, in spot diameters.
MATCHED_WITHIN = 0.5


def assess(
    what: Model | Result, dataset: Path, *, min_depth: int, allow_patient_leak: bool, engine: EngineRequest,
    report: Report, reading: Reading = AS_IT_IS,
) -> Assessment:  # fmt: skip
    """Score a model's predictions for the spots of a data set, or a result's for the spots of its own slide.

    Spots with fewer than `min_depth` counts are left out, and sections that have hardly any others. Baselines may train
    on all other spots of the data set. Patients that the model was trained on are not scored unless
    `allow_patient_leak`. Scores are in the model's unit; if measurements cannot have this unit, only scores that need
    none are computed. Raises UsageError if no patient is left to score, and DatasetError for data that do not fit.
    """
    limit_threads(engine.threads)
    card = what.card if isinstance(what, Model) else what.provenance.get("card", {})
    name = what.name
    unit = (card if isinstance(what, Model) else what.provenance)["expression_unit"]
    known_unit = find_normalisation(unit)
    normalisation = known_unit or NORMALISATIONS["total"]

    if isinstance(what, Result):
        demand_own_slide(what, dataset, reading)

    panel = list(dict.fromkeys([*panel_of(what), *card.get("panel", [])]))

    def scored_and_notes(found: Tiles | Measured) -> tuple[Int, list[str]]:
        scored = np.arange(len(found.section)) if isinstance(what, Model) else own_section(what, found)
        demand_shared_genes(name, panel_of(what), panel, found)
        return unseen(name, card, found, scored, allow_patient_leak)

    views = what.views if isinstance(what, Model) else None
    with tempfile.TemporaryDirectory() as folder:
        tiles, left_out = open_tiles(
            dataset, card, views, Path(folder), report, scored_and_notes, reading, engine.threads
        )
        scored, about_patients = scored_and_notes(tiles)
        tiles, about_names = in_the_panels_names(panel, tiles)
        depth = depth_of_shares(tiles, card.get("panel", panel), normalisation)
        shares = Shares(depth, normalisation, foreign_unit=None if known_unit else unit)
        deep = tiles.depth >= min_depth
        known: Int = np.flatnonzero(deep & (shares.depth > 0))
        own = np.intersect1d(scored, known)
        sections, n_own = np.unique(tiles.section[own], return_counts=True)
        small = sections[n_own < MIN_SECTION_SPOTS].tolist()
        own = own[~np.isin(tiles.section[own], small)]
        untaught = unmeasured_in_training(what) if isinstance(what, Model) else set()
        elsewhere = measured_nothing(tiles, own, [gene for gene in panel_of(what) if gene not in untaught])
        own = own[~np.isin(tiles.section[own], elsewhere)]
        if elsewhere and not len(own):
            raise DatasetError(
                f"{name}: the sections that can be scored measured none of its genes: {some(elsewhere)}."
            )
        if isinstance(what, Model):
            check_slides_at_hand(what, dataset)
            predicted = predict_spots(what, tiles, own, shares, engine, report, dataset, Path(folder), reading)
        else:
            predicted = match_spots(what, tiles, own, shares)
        report(f"colour and texture of {min(len(known), MOST_DESCRIBED)} patches, for the baselines")
        features = describe_drawn(tiles, known, engine.threads)
        shallow = int((~deep[scored]).sum())
        uncounted = int(deep[scored].sum()) - len(np.intersect1d(scored, known))
        notes = [
            *told_twins(tiles.twins),
            *about_broken(left_out),
            *about_patients,
            f"left out: {shallow} of {counted(len(scored), 'spot')}, with fewer than {min_depth} counts",
        ]
        if uncounted:
            notes.append(f"left out: {counted(uncounted, 'further spot')}, without counts in the panel")
        if small:
            notes.append(f"sections with fewer than {MIN_SECTION_SPOTS} other spots are left out: {some(small)}")
        if elsewhere:
            notes.append(f"sections that measured none of the predicted genes are left out: {some(elsewhere)}")
        notes += about_names
        unmeasured = set(panel_of(what)) - set(tiles.genes)
        if unmeasured:
            notes.append(f"{len(unmeasured)} of the {len(panel_of(what))} predicted genes were not measured there")
        if len(unmeasured) > MANY_UNMEASURED * len(panel_of(what)):
            notes.append(
                "so these sections' shares are of fewer genes than those that the model learnt from: RMSE, MSE, MAE, "
                "slopes and intervals are off by that"
            )
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
        return replace(found, pictures=pictures, left_out=left_out)


def measured_nothing(tiles: Tiles, own: Int, panel: Sequence[str]) -> list[str]:
    """The sections of some spots that measured no gene of a panel."""
    sections: list[str] = sorted(set(tiles.section[own].tolist()))
    return [name for name, genes in zip(sections, tiles.measured_by(sections, panel), strict=True) if not genes.any()]


def about_broken(left_out: Mapping[str, str]) -> list[str]:
    """A note on sections that could not be read, if there are any."""
    return [f"left out, as they could not be read: {some(left_out)}"] if left_out else []


def check_training_patients(name: str, card: dict[str, Any], patient: Labels, allow: bool) -> list[str]:
    """A note if the model was trained on patients of these names. Raises UsageError for it unless `allow`."""
    if card.get("training", {}).get("anonymous"):
        unknown = "the model's card does not name the patients that it was trained on, who may be among these"
        if not allow:
            raise UsageError(f"{name}: {unknown}. --allow-patient-leak scores them all the same.")
        return [f"LEAK: {unknown}"]
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
    """The spots to score, and a note: those of patients that the model was not trained on, if there are any.

    If there are none, raises UsageError, unless `allow_patient_leak`.
    """
    seen = np.isin(found.patient, sorted(training_patients(card)))
    seen = np.isin(found.kin, found.kin[seen])  # and patients who share a section with one of them
    if allow_patient_leak or seen[scored].all() or card.get("training", {}).get("anonymous"):
        leak = check_training_patients(name, card, found.patient[scored], allow_patient_leak)
        known = sorted(set(card.get("training", {}).get("sections", [])) & set(found.section[scored].tolist()))
        return scored, [f"{note}; and on sections of these: {', '.join(known)}" if known else note for note in leak]
    left_out = sorted(set(found.patient[scored][seen[scored]].tolist()))
    note = f"not scored, as the model was trained on patients of these names: {', '.join(left_out)}"
    return scored[~seen[scored]], [note] if left_out else []


def training_patients(card: dict[str, Any]) -> set[str]:
    """The patients that the model learnt from, by image, by counts alone, or by tissue without counts."""
    training = card.get("training", {})
    return {name for of in ("", "counts_only_", "tissue_") for name in training.get(f"{of}patients", [])}


def panel_of(what: Model | Result) -> list[str]:
    return what.panel if isinstance(what, Model) else [gene.name for gene in what.genes]


def demand_own_slide(result: Result, dataset: Path, reading: Reading) -> None:
    """Raises DatasetError if a folder's only section has another name than the result, and is another slide.

    If a section has the result's name, its image may be another file of the same tissue.
    """
    if dataset.suffix == ".h5":
        return
    sections = read_dataset(dataset, reading)
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
    check: Callable[[Measured], object], reading: Reading = AS_IT_IS, threads: int = 2,
) -> tuple[Tiles, dict[str, str]]:  # fmt: skip
    """A data set's patches as the model needs them, and the broken sections that the reading skips, with reasons.

    Unless the data set is a tiles file, patches are cut when they are read. The `folder` then holds one section's
    patches at a time, and the data set's tables. `views` may be None if nothing is to be predicted. `check` sees the
    measurements before anything is cut, and may raise.
    """
    patch_px, mpp = card.get("patch_px", 224), card.get("mpp")
    if dataset.suffix != ".h5":
        path = folder / "dataset.tiles.h5"
        sections, left_out = read_asked(dataset, with_bins_of(card, reading))
        check(measured_in(sections, ()))
        views = views or ONE_VIEW
        how = Cut(patch_px, views, settle_cut(sections, patch_px, views, mpp), threads)
        write_tiles(
            sections, path, patch_px=patch_px, views=views, mpp=mpp, keep_table=False, with_patches=False, report=report
        )
        patches = SectionPatches(sections, how, folder, report)
        del sections  # before their counts are read again as tiles
        return replace(read_tiles(path), patches_from=patches), left_out
    tiles = read_tiles(dataset)
    if tiles.patch_px != patch_px or (mpp and abs(tiles.mpp / mpp - 1) > 0.01):
        raise DatasetError(
            f"{dataset}: holds patches of {tiles.patch_px} px at {tiles.mpp:g} um/px, "
            f"the model wants {patch_px} px at {mpp:g} um/px; name the folder they were cut from, "
            f"or cut them again with --mpp {mpp:g}."
        )
    if views:
        check_views(tiles, views)
    return tiles, {}


def with_bins_of(card: dict[str, Any], reading: Reading) -> Reading:
    """The reading, with bins pooled to squares as large as the spots that a model learnt from, if these fit."""
    return replace(reading, bins=Bins(like_um=card.get("spot_diameter_um")))


def check_slides_at_hand(model: Model, dataset: Path) -> None:
    """Raises DatasetError if a model looks at the slides around spots and the data do not hold them."""
    if model.reads_slide and dataset.suffix == ".h5":
        raise DatasetError(
            f"{dataset}: does not hold the slides around the spots, which {model.name} looks at; name the folder that "
            "it was cut from."
        )


def predict_spots(
    model: Model, tiles: Tiles, index: Int, shares: Shares, request: EngineRequest, report: Report, dataset: Path,
    folder: Path, reading: Reading = AS_IT_IS,
) -> Predicted:  # fmt: skip
    """The model's prediction for some spots, for those of its genes that were measured.

    If the model needs more than the spots' patches, that is made from the data set's images, in the `folder`.
    """
    measured = set(tiles.genes) - unmeasured_in_training(model)
    panel = [gene for gene in model.panel if gene in measured]
    if not len(index):
        raise DatasetError(f"{model.name}: no spot has counts enough there.")
    sample = tiles.read_patches(index[np.unique(np.linspace(0, len(index) - 1, N_SAMPLE).astype(int))])
    engine = open_engine(model, request, sample, report)
    columns = [model.panel.index(gene) for gene in panel]
    if engine.two_passes:
        sections = read_dataset(dataset, with_bins_of(model.card, reading))
        known = look_around_sections(sections, tiles, engine.two_passes, model.card["pitch_um"], folder, report)
        expression = predict_in_sections(engine.two_passes, known, tiles, index)[:, columns]
    else:
        patches = (tiles.read_patches([i])[0] for i in index)
        batches = engine.infer(fixed_batches(patches, engine.batch_size, sample.shape[1:]))
        expression = np.concatenate([batch[:, columns] for batch in batches])[: len(index)]
    return Predicted(index, panel, expression, held_out_correlation(model.card)[columns], shares)


def unmeasured_in_training(model: Model) -> set[str]:
    """Genes of a model that none of its training sections measured. Its values for these are no predictions."""
    measured = measured_in_training(model)
    return set() if measured is None else {g for g, known in zip(model.panel, measured, strict=True) if not known}


def own_section(result: Result, tiles: Tiles | Measured) -> Int:
    """The measured spots of the section with the result's name, or of the only section."""
    sections = sorted(set(tiles.section.tolist()))
    if len(sections) > 1 and result.name not in sections:
        raise DatasetError(f"{result.path.name}: no section is called {result.name} ({', '.join(sections)}).")
    section = result.name if result.name in sections else sections[0]
    return np.flatnonzero(tiles.section == section)


def match_spots(result: Result, tiles: Tiles, own: Int, shares: Shares) -> Predicted:
    """A result's expression at the measured spots that have a predicted spot near them."""
    mpp = np.array(result.canvas.mpp)
    far, nearest = cKDTree(result.spots.centres * mpp).query(tiles.centres[own] * mpp)
    matched = far <= MATCHED_WITHIN * result.canvas.spot_diameter_um
    measured = set(tiles.genes)
    genes = [gene for gene in result.genes if gene.name in measured and gene.measured_in_training != 0]
    if matched.sum() < 3:
        raise DatasetError(
            f"{result.path.name}: {matched.sum()} of {len(own)} measured spots lie within "
            f"{MATCHED_WITHIN * result.canvas.spot_diameter_um:g} um of a predicted one; predict at their positions "
            "with --spots."
        )
    expression = np.stack([result.expression(gene.name)[nearest[matched]] for gene in genes], axis=1)
    read = np.isfinite(expression).all(axis=1)
    return Predicted(
        own[matched][read], [gene.name for gene in genes], expression[read],
        np.array([gene.held_out_correlation for gene in genes]), shares,
    )  # fmt: skip
