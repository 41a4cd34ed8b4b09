"""Score a model or a result on measured sections."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict.commands.as_json import print_json
from stpredict.commands.inputs import needs_training_extra
from stpredict.console import report
from stpredict.errors import DatasetError, ResultError, UsageError
from stpredict.model.file import Model, find_model, load_model
from stpredict.storage.files import output_folders

if TYPE_CHECKING:
    from stpredict.data.reading import Reading
    from stpredict.engines.engine import EngineRequest


def evaluate_command(
    what: str, dataset: Path, out: Path, engine: EngineRequest, min_depth: int, allow_patient_leak: bool,
    protocol: str | None, overwrite: bool, as_json: bool = False, **of_sections: Any,
) -> bool:  # fmt: skip
    """Score a model or a result on measured sections, print the table, and print the paths of what was written.

    As JSON, print the content of the .json file and, as `files`, the paths. `of_sections` are fields of `Reading`.
    Returns whether sections were left out, as they could not be read, which a table then names.

    Raises DatasetError if there is no such data set, ResultError if an evaluation of these names exists, unless
    `overwrite`.
    """
    if not dataset.exists():  # said before the libraries are loaded, which takes seconds
        raise DatasetError(f"{dataset}: no such file or folder.")
    try:
        from stpredict.data.reading import Reading
        from stpredict.evaluation.assessment import assess
        from stpredict.evaluation.report import JSON_SUFFIX, show, write
        from stpredict.result.file import read_result
        from stpredict.training.preparation import run_name
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    reading = Reading(**of_sections)
    if dataset.suffix == ".h5" and any(of_sections.values()):
        raise UsageError(
            "--where, --species, --orthologs, --skip-broken need a folder of sections; a .tiles.h5 file is already cut."
        )
    source = read_result(Path(what)) if what.endswith(".h5ad") else load_model(find_model(what))
    stem = out / f"{source.name}-{run_name(dataset) or dataset.absolute().name.split('.')[0]}"
    if protocol:
        if protocol != "hest" or not isinstance(source, Model):
            raise UsageError("--protocol: evaluate has only hest, for models; m2ort and triplex belong to train.")
        with output_folders(out):
            path, lines, left_out = _evaluate_hest(
                source, dataset, stem, allow_patient_leak, engine.threads, overwrite, reading
            )
            _tell(lines, [path], as_json)
            return _tell_broken(left_out, stem)
    if (earlier := stem.with_name(stem.name + JSON_SUFFIX)).exists() and not overwrite:
        raise ResultError(f"{earlier}: exists; --overwrite replaces it.")
    with output_folders(out):
        found = assess(
            source, dataset, min_depth=min_depth, allow_patient_leak=allow_patient_leak, engine=engine, report=report,
            reading=reading,
        )  # fmt: skip
        lines = list(show(found))
        scored = (
            {"model": source.sha256}
            if isinstance(source, Model)
            else {"result": source.digest_of(range(len(source.genes)))}
        )
        out.mkdir(parents=True, exist_ok=True)  # another call may have removed it meanwhile
        written = list(write(found, stem, {**scored, "data_set": dataset.name, "min_depth": min_depth}))
        _tell(lines, written, as_json)
        return _tell_broken(found.left_out, stem)


def _tell_broken(left_out: dict[str, str], stem: Path) -> bool:
    """Name the sections that were left out, and why, in a table, if there are any."""
    from stpredict.data.reading import about_left_out, write_broken

    table = stem.with_name(f"{stem.name}.broken.csv")
    write_broken(left_out, table)
    if left_out:
        report(about_left_out(list(left_out), table))
    return bool(left_out)


def _tell(lines: Sequence[str], written: Sequence[Path], as_json: bool) -> None:
    """Print a table and the paths of what was written, or the content of the JSON file among them."""
    if as_json:
        (path,) = (path for path in written if path.suffix == ".json")
        print_json({**json.loads(path.read_text(encoding="utf-8")), "files": written})
    else:
        print(*lines, *written, sep="\n")


def _evaluate_hest(
    model: Model, dataset: Path, stem: Path, allow_patient_leak: bool, threads: int, overwrite: bool,
    reading: Reading,
) -> tuple[Path, list[str], dict[str, str]]:  # fmt: skip
    """Score a model's features by the protocol of HEST-Bench.

    Returns what was written, the table's lines, and the sections that could not be read, with why.
    """
    from stpredict.evaluation.hest import JSON_SUFFIX, assess_hest, show_hest, write_hest

    path = stem.with_name(stem.name + JSON_SUFFIX)
    if path.exists() and not overwrite:
        raise ResultError(f"{path}: exists; --overwrite replaces it.")
    with tempfile.TemporaryDirectory() as folder:
        found = assess_hest(
            model, dataset, Path(folder), allow_patient_leak=allow_patient_leak, threads=threads, report=report,
            reading=reading,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)  # another call may have removed it meanwhile
    write_hest(found, path, {"model": model.sha256, "data_set": dataset.name})
    return path, list(show_hest(found)), found.left_out
