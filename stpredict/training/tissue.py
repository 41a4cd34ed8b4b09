"""`--tissue`: find the slides without counts that a call names, and check that patches can be cut from each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from stpredict.batch.folders import search
from stpredict.console import Report
from stpredict.data.counts import in_memory
from stpredict.data.cutting import places_by_section, too_coarse, usual_size
from stpredict.data.patches_elsewhere import fingerprint_of
from stpredict.data.places import places_on
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.data.tissue import places_of, tissue_beside
from stpredict.data.twins import content_digests
from stpredict.errors import DatasetError, MissingMppError, SlideError, UsageError, counted, some
from stpredict.slides.appearance import note_appearance
from stpredict.slides.raster import MAX_UPSAMPLING
from stpredict.slides.slide import Mpp, open_slide, resolve_mpp
from stpredict.slides.tissue import find_tissue
from stpredict.storage.files import is_folder
from stpredict.storage.text_tables import read_lines, read_numbers

#: Suffixes of tables of slides.
TABLES = {".csv", ".tsv", ".txt"}
#: What to do about a slide whose file does not state the size of its pixels.
MPP_REMEDY = "name it in a table (--tissue slides.csv) with the columns image and mpp"


@dataclass(frozen=True)
class TissueFile:
    """A slide without counts; its patient and mpp, if a table states them."""

    path: Path
    patient: str | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Tissue:
    """The slides without counts, as sections without spots; and for each slide that is left out the reason."""

    slides: Sequence[Section] = ()
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def patients(self) -> dict[str, str]:
        """The patient of each slide, by name."""
        return {slide.name: slide.patient for slide in self.slides}


NO_TISSUE = Tissue()


def tissue_files(asked: Sequence[Path], report: Report = lambda _line: None) -> list[TissueFile]:
    """The slides that `--tissue` names, each once: files, all in a folder and below it, or the lines of a table.

    Reports what it passes over in a folder. Raises UsageError if a file is missing or is named with two patients or
    two mpp, a table cannot be read, or a folder holds no slide.
    """
    found: dict[Path, list[TissueFile]] = {}
    for path in asked:
        for file in _named(path, report):
            if not file.path.is_file():
                raise UsageError(f"--tissue {path}: there is no slide {file.path}.")
            found.setdefault(file.path.resolve(), []).append(file)
    return [_as_one(files) for files in found.values()]


def _named(path: Path, report: Report) -> list[TissueFile]:
    if is_folder(path):
        return _in_folder(path, report)
    return _of_table(path) if path.suffix.lower() in TABLES else [TissueFile(path)]


def _as_one(files: Sequence[TissueFile]) -> TissueFile:
    """The first of some equal files, with the patient and mpp that any of them states.

    Raises UsageError if they state two.
    """
    patients = list(dict.fromkeys(file.patient for file in files if file.patient))
    mpps = list(dict.fromkeys(file.mpp for file in files if file.mpp))
    for fact, stated in (("patient", patients), ("mpp", [f"{mpp:g}" for mpp in mpps])):
        if len(stated) > 1:
            paths = some(dict.fromkeys(str(file.path) for file in files))
            raise UsageError(f"--tissue: {paths}: one slide, named with more than one {fact} ({some(stated)}).")
    return TissueFile(files[0].path, next(iter(patients), None), next(iter(mpps), None))


def _in_folder(folder: Path, report: Report) -> list[TissueFile]:
    found = search(folder, ())
    if found.unreadable:
        closed = [f"{path} ({reason})" for path, reason in found.unreadable.items()]
        raise UsageError(f"--tissue {folder}: cannot be searched: {some(closed)}.")
    if not found.slides:
        raise UsageError("; ".join([f"--tissue {folder}: holds no slide", *found.passed_over()]) + ".")
    for path in found.links:
        report(f"--tissue {path}: a link to a folder, not followed; name it to search it")
    for line in found.passed_over():
        report(f"--tissue {folder}: {line}")
    return [TissueFile(path) for path in found.slides]


def _of_table(table: Path) -> list[TissueFile]:
    header = "needs a header line with the column image, and may have patient and mpp"
    files = []
    for line in read_lines(table, ("image",), header, UsageError, ("patient", "mpp")):
        cells, where = line.cells, f"{table}, line {line.number}"
        if not cells.get("image"):
            raise UsageError(f"{where}: needs an image.")
        try:
            (mpp,) = read_numbers([cells["mpp"]]) if cells.get("mpp") else (None,)
        except ValueError:
            mpp = np.nan
        if mpp is not None and not 0 < mpp < np.inf:
            raise UsageError(f"{where}: mpp must be a positive number of micrometres, not {cells['mpp']!r}.")
        files.append(TissueFile(table.parent / cells["image"], cells.get("patient") or None, mpp))
    if not files:
        raise UsageError(f"--tissue {table}: names no slide.")
    return files


def recorded_tissue(asked: Sequence[Path]) -> list[Any]:
    """For the record of a run: the number of the slides, and a hash of their names, facts and parts of each file.

    The order in which they are named does not matter.
    """
    facts = [(file.path.name, file.patient, file.mpp, fingerprint_of(file.path)) for file in tissue_files(asked)]
    in_order = sorted(facts, key=json.dumps)
    return [len(facts), hashlib.sha256(json.dumps(in_order).encode()).hexdigest()[:16]]


def read_tissue(
    asked: Sequence[Path], sections: Sequence[Section], mpp: float, unlabelled: int, skip_broken: bool, report: Report
) -> Tissue:
    """The slides that `--tissue` names, of which patches can be cut at `mpp` beside those of the `sections`.

    A section's own image is left out, and the second of two equal files. Raises DatasetError, which names all of them,
    for slides that cannot be read, are too coarse or show no tissue, unless `skip_broken`. Raises UsageError as
    `tissue_files` does, for equal files with two patients or two mpp, if all are sections' images, and if there is not
    one of the `unlabelled` patches for each slide.
    """
    # Of two equal files that one gives its name whose patient, or else whose mpp, is named.
    files = sorted(tissue_files(asked, report), key=lambda file: (file.patient is None, file.mpp is None))
    report(f"looking for tissue on {counted(len(files), 'slide')} without counts")
    diameter_um, pitch_um = usual_size(sections, lambda _line: None)
    like = Section("", "", Path(), Mpp(mpp, mpp), [], np.empty((0, 2)), [], in_memory(csr_array((0, 0))),
                   spot_diameter_um=diameter_um, pitch_um=pitch_um)  # fmt: skip
    slides, broken = _examined(files, sections, like, report)
    if broken and not skip_broken:
        raise _refusal(broken)
    if not slides and not broken:
        raise UsageError(
            "--tissue: names images of sections alone, which give unlabelled patches anyway; leave it out."
        )
    if not slides:
        report("no slide of --tissue can be used, so none teaches")
    elif not all(places_by_section(sections, unlabelled, slides)[len(sections) :]):
        n_own = sum(not section.patches for section in sections)
        of_all = f"{counted(n_own + len(slides), 'slide')}, {len(slides)} without counts and {n_own} of sections"
        raise UsageError(
            f"--tissue: --unlabelled {unlabelled} is less than a patch of each of {of_all}; name {n_own + len(slides)} "
            "or more."
        )
    _tell_patients(slides, sections, report)
    return Tissue(slides, broken)


def _examined(
    files: Sequence[TissueFile], sections: Sequence[Section], like: Section, report: Report
) -> tuple[list[Section], dict[str, str]]:
    """The slides as sections `like` one without spots, and the reason for each of which no patch can be cut.

    Reports which are left out because they are there already, and which may not be H&E.
    """
    images = {section.image: section.name for section in sections if section.image.is_file()}
    names = dict(zip(files, _names(files, [section.name for section in sections]), strict=True))
    digests = content_digests([*images, *(file.path for file in files)])
    of_section = {digests[image]: section for image, section in images.items()}
    equal: dict[bytes, list[TissueFile]] = {}
    for file in files:
        equal.setdefault(digests[file.path], []).append(file)
    slides, broken, twins, doubts = list[Section](), dict[str, str](), list[str](), list[str]()
    for digest, same in equal.items():
        if digest in of_section:
            twins += [f"{names[file]} (the image of section {of_section[digest]})" for file in same]
            continue
        slide, doubt, reasons = _first_usable(same, names, like)
        if slide is None:
            broken |= reasons
            continue
        slides.append(slide)
        twins += [f"{names[file]} (the same as {slide.name})" for file in same if names[file] != slide.name]
        doubts += [f"{slide.name} ({doubt})"] if doubt else []
    if twins:
        report(f"left out of --tissue, as it is there already: {some(twins)}")
    if doubts:
        report(f"may not be H&E, and teaches all the same: {some(doubts)}")
    return slides, broken


def _first_usable(
    same: Sequence[TissueFile], names: Mapping[TissueFile, str], like: Section
) -> tuple[Section | None, str | None, dict[str, str]]:
    """Of equal files the first of which patches can be cut, as a section `like` one, and why it may not be H&E.

    Also the reason for each file before it: their names can hide what they are. Raises UsageError as `_as_one`.
    """
    stated, reasons = _as_one(same), dict[str, str]()
    for file in same:
        name = names[file]
        try:
            own, doubt = _own_mpp(replace(stated, path=file.path), like)
        except (SlideError, DatasetError) as error:
            reasons[name] = str(error)
            continue
        return replace(like, name=name, patient=stated.patient or name, image=file.path, mpp=own), doubt, reasons
    return None, None, reasons


def _names(files: Sequence[TissueFile], taken: Collection[str]) -> list[str]:
    """A name for each slide: its file's, or the path if a section or another slide has that name."""
    times = Counter(file.path.name for file in files)
    return [
        str(file.path) if times[file.path.name] > 1 or file.path.name in taken else file.path.name for file in files
    ]


def _own_mpp(file: TissueFile, like: Section) -> tuple[Mpp, str | None]:
    """A slide's mpp, and why it may not be H&E, in words. Raises SlideError or DatasetError if it cannot be cut."""
    with open_slide(file.path) as slide:
        try:
            own = resolve_mpp(slide, file.mpp)
        except MissingMppError as error:  # its remedy, an option of `predict`, is not that of `--tissue`
            raise MissingMppError(f"{str(error).rpartition('; ')[0]}; {MPP_REMEDY}.") from error
        if max(own) > MAX_UPSAMPLING * max(like.mpp):
            raise too_coarse(file.path, own, max(like.mpp))
        tissue = find_tissue(slide, own)
        note_appearance(slide, tissue.overview)
        places_on(slide, tissue, replace(like, image=file.path, mpp=own), 1, np.random.default_rng(0))
        return own, slide.appearance


def _refusal(broken: Mapping[str, str]) -> DatasetError:
    if len(broken) == 1:
        return DatasetError(next(iter(broken.values())))
    each = "; ".join(f"{name} ({why.removesuffix('.')})" for name, why in broken.items())
    return DatasetError(f"{len(broken)} slides of --tissue cannot be used: {each}; --skip-broken leaves them out.")


def _tell_patients(slides: Sequence[Section], sections: Sequence[Section], report: Report) -> None:
    """Say which slides are of patients with sections, which of other patients, and of how many nothing says whose."""
    patients = {section.patient for section in sections}
    named = [slide.patient for slide in slides if slide.patient != slide.name]
    _tell_whose(
        [patient for patient in named if patient in patients], "with sections",
        "a part that holds a patient out does not learn from that patient's slides", report,
    )  # fmt: skip
    _tell_whose(
        [patient for patient in named if patient not in patients], "without sections",
        "if one has sections, name that patient as the data set does", report,
    )  # fmt: skip
    if unnamed := sum(slide.patient == slide.name for slide in slides):
        report(
            f"nothing names the patient of {counted(unnamed, 'slide')} of --tissue, so each counts as a patient of its "
            "own; if one may be of a patient with sections, name it in a table with the columns image and patient"
        )


def _tell_whose(patients: Sequence[str], which: str, so: str, report: Report) -> None:
    """Report the patients of some slides, one for each slide; nothing if there are none."""
    if patients:
        whose = "is of a patient" if len(patients) == 1 else "are of patients"
        names = some(sorted(set(patients)))
        report(f"{counted(len(patients), 'slide')} of --tissue {whose} {which} ({names}); {so}")


def tissue_taught(tiles: Tiles, sections: Sequence[str]) -> dict[str, Any]:
    """For a card: how many slides without counts taught a network of these sections, by how many patches.

    Those patients are listed that a table named.
    """
    beside = tissue_beside(tiles, sections)
    if not beside:
        return {}
    n_own = int(np.isin(tiles.unlabelled_section, sections).sum())
    named = sorted({tiles.tissue[name] for name in beside if tiles.tissue[name] != name})
    return {
        "tissue_slides": len(beside), "tissue_patches": len(places_of(tiles, sections)) - n_own,
        "tissue_patients": named,
    }  # fmt: skip
