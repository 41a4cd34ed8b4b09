"""Choose the sections that are held out to test a model, and those that choose its number of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Measured, Tiles
from stpredict.data.twins import Twins, with_twins
from stpredict.errors import UsageError, counted, some, some_of
from stpredict.evaluation.described import MOST_TAUGHT
from stpredict.evaluation.measured import read_counts
from stpredict.evaluation.splits import Split
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.statistics.sampling import draw_evenly
from stpredict.training.panels import n_genes_measured
from stpredict.training.settings import Settings

#: Fewer spots have no correlation.
MIN_SPOTS = 3


@dataclass(frozen=True)
class Fold:
    """One held-out part: one or several patients, or sections of a patient whose other sections train.

    By default all other sections train, and `choose_validation` says which of them choose the epochs.
    """

    name: str
    kind: str  # "patient" | "section"
    test_sections: list[str]
    train: list[str] | None = None
    validation: list[str] | None = None
    leak: str = ""  # a further leak from the held-out part into training


def plan_folds(tiles: Tiles | Measured, by: str, hold_out: Sequence[str] = ()) -> list[Fold]:
    """Parts to hold out, `by` "patient", "section", a number of parts of patients, or "none"; and those in `hold_out`.

    Patients who share a section under two names count as one, and such sections are held out together.
    Raises UsageError for another `by`, a name that is neither a patient nor a section, or more parts than patients.
    """
    sections_of = {str(p): sorted(set(tiles.section[tiles.kin == p])) for p in sorted(set(tiles.kin))}
    names = sorted(set(tiles.section))
    label = dict(zip(tiles.patient.tolist(), tiles.kin.tolist(), strict=True))
    check_split(by)
    if by.isdigit():
        folds = _parts(tiles, sections_of, int(by))
    else:
        chosen = {"patient": list(sections_of), "section": names, "none": []}[by]
        folds = [fold for name in chosen if (fold := _named(name, sections_of, names, tiles.twins))]
    for name in hold_out:
        meant = dict.fromkeys((label.get(name, name), name))  # if patients count as one, all of them
        fold = next((fold for one in meant if (fold := _named(one, sections_of, names, tiles.twins))), None)
        if fold is None:
            raise UsageError(
                f"--hold-out {name}: not one of several patients ({', '.join(sections_of)}) "
                f"or sections ({', '.join(names)})."
            )
        folds.append(fold)
    return list({tuple(fold.test_sections): fold for fold in reversed(folds)}.values())[::-1]  # the first of each


def check_split(by: str) -> None:
    """Raises UsageError for a split that `plan_folds` does not know."""
    if by not in ("patient", "section", "none") and not by.isdigit():
        raise UsageError(f"--folds {by}: choose patient, section, none, or a number of parts.")


def check_leaks(folds: Sequence[Fold], allow_patient_leak: bool, protocol: str | None = None) -> None:
    """Raises UsageError if a held-out part's patient is also in training, unless that is allowed."""
    leaking = [fold.name for fold in folds if fold.kind == "section"]
    if leaking and not allow_patient_leak:
        how = f"--protocol {protocol}" if protocol else f"holding out section {some(leaking)}"
        raise UsageError(
            f"{how} {'tests and ' if protocol else ''}trains on the same patient, which says nothing of new patients. "
            "--allow-patient-leak does it all the same, and the card will say so."
        )


def check_depth(tiles: Tiles | Measured, folds: Sequence[Fold], min_depth: int) -> None:
    """Raises UsageError if a part has hardly any spot with `min_depth` counts."""
    for fold in folds:
        depth = tiles.depth[np.isin(tiles.section, fold.test_sections)]
        deep = int((depth >= min_depth).sum())
        if deep < MIN_SPOTS:
            raise UsageError(
                f"held-out {some_of(fold.name)}: {deep} of its {len(depth)} spots have {min_depth} counts or more, too "
                "few to score; --min-depth sets another bound."
            )


def choose_validation(tiles: Tiles | Measured, sections: Sequence[str]) -> list[str]:
    """The training sections that choose the number of epochs: a patient's, out of three or more, else one section."""
    sections_of: dict[str, list[str]] = {}
    for name in sections:
        sections_of.setdefault(str(tiles.kin[tiles.section == name][0]), []).append(name)
    spots = {p: int(np.isin(tiles.section, own).sum()) for p, own in sections_of.items()}
    if len(sections_of) >= 3:
        return sections_of[min(spots, key=lambda p: (spots[p], p))]
    most = max(sections_of, key=lambda p: (len(sections_of[p]), p))
    last = [name for name in with_twins(sections_of[most][-1:], tiles.twins) if name in sections]
    return last if set(last) < set(sections_of[most]) else []


def split_of(
    tiles: Tiles, fold: Fold, sections: Sequence[str], panel: Sequence[str], depth: Float, settings: Settings,
    described: Int,
) -> tuple[Split, Int]:  # fmt: skip
    """The spots of a fold's training `sections` and of its held-out ones, and their indices.

    Those of training are some of the `described` ones, from which baselines learn; those held out have not too few
    counts. A share is a count over the spot's `depth`. Sections that measured no gene of the panel are left out. Raises
    UsageError if all held-out sections are.
    """
    there = (depth > 0) & (n_genes_measured(tiles, panel) > 0)
    training = np.intersect1d(np.flatnonzero(np.isin(tiles.section, sections) & there), described)
    training = training[draw_evenly(tiles.section[training], MOST_TAUGHT)]
    test = np.flatnonzero(np.isin(tiles.section, fold.test_sections) & there & (tiles.depth >= settings.min_depth))
    if not len(test):
        raise nothing_to_score(fold, len(panel))
    index: Int = np.union1d(training, test)
    counts = read_counts(tiles, panel, index)
    per = NORMALISATIONS[settings.normalisation].per
    split = Split(
        counts, depth[index], tiles.section[index], tiles.kin[index], tiles.centres[index],
        np.isin(index, training), np.isin(index, test), per,
    )  # fmt: skip
    return split, index


def nothing_to_score(fold: Fold, n_genes: int) -> UsageError:
    """Why a part cannot be scored whose sections measured none of the panel's genes, and what to do."""
    return UsageError(
        f"held-out {some_of(fold.name)}: its sections measured none of the {counted(n_genes, 'gene')} of the panel, so "
        "nothing can be scored; --genes-file names genes that they measured."
    )


def _named(name: str, sections_of: dict[str, list[str]], names: Sequence[str], twins: Sequence[Twins]) -> Fold | None:
    """The part that a patient's or a section's name means; None if nothing would be left to train on."""
    if name in sections_of and len(sections_of) > 1:
        return Fold(name, "patient", sections_of[name])
    test = [other for other in with_twins([name], twins) if other in names]
    if name in names and len(names) > len(test):
        own = next(own for own in sections_of.values() if name in own)
        return Fold("+".join(test), "section" if len(own) > len(test) else "patient", test)
    return None


def _parts(tiles: Tiles | Measured, sections_of: dict[str, list[str]], k: int) -> list[Fold]:
    """`k` parts of whole patients with about as many spots each: the largest patient first, each to the smallest part.

    Raises UsageError for fewer than two parts, or more than there are patients.
    """
    if not 2 <= k <= len(sections_of):
        raise UsageError(f"--folds {k}: from 2 up to the number of patients, which is {len(sections_of)}.")
    spots = {patient: int((tiles.kin == patient).sum()) for patient in sections_of}
    parts: list[list[str]] = [[] for _ in range(k)]
    for patient in sorted(spots, key=lambda p: (-spots[p], p)):
        min(parts, key=lambda part: sum(spots[p] for p in part)).append(patient)
    parts = sorted(sorted(part) for part in parts)
    return [Fold("+".join(part), "patient", sorted(s for p in part for s in sections_of[p])) for part in parts]
