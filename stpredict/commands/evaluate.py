"""Score a model or a result on measured sections."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict.commands.inputs import needs_training_extra
from stpredict.console import report
from stpredict.errors import ResultError, UsageError
from stpredict.model.file import Model, find_model, load_model
from stpredict.storage.files import output_folders

if TYPE_CHECKING:
    from stpredict.engines.engine import EngineRequest


def evaluate_command(
    what: str, dataset: Path, out: Path, engine: EngineRequest, min_depth: int, allow_patient_leak: bool,
    protocol: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Score a model or a result on measured sections, print the table, and print the paths of what was written.

    Raises ResultError if an evaluation of these names exists, unless `overwrite`.
    """
    try:
        from stpredict.evaluation.assessment import assess
        from stpredict.evaluation.report import JSON_SUFFIX, show, write
        from stpredict.result.file import read_result
        from stpredict.training.preparation import run_name
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    source = read_result(Path(what)) if what.endswith(".h5ad") else load_model(find_model(what))
    stem = out / f"{source.name}-{run_name(dataset) or dataset.absolute().name.split('.')[0]}"
    if protocol:
        if protocol != "hest" or not isinstance(source, Model):
            raise UsageError("--protocol: evaluate has hest, for models; m2ort and triplex are those of train.")
        with output_folders(out):
            print(_evaluate_hest(source, dataset, stem, allow_patient_leak, engine.threads, overwrite))
        return
    if (earlier := stem.with_name(stem.name + JSON_SUFFIX)).exists() and not overwrite:
        raise ResultError(f"{earlier}: exists; --overwrite replaces it.")
    with output_folders(out):
        found = assess(
            source, dataset, min_depth=min_depth, allow_patient_leak=allow_patient_leak, engine=engine, report=report
        )
        for line in show(found):
            print(line)
        scored = {"model": source.sha256} if isinstance(source, Model) else {"result": source.digest}
        out.mkdir(parents=True, exist_ok=True)  # which another call may have removed meanwhile
        for path in write(found, stem, {**scored, "data_set": dataset.name, "min_depth": min_depth}):
            print(path)


def _evaluate_hest(
    model: Model, dataset: Path, stem: Path, allow_patient_leak: bool, threads: int, overwrite: bool
) -> Path:
    """Score a model's features by the protocol of HEST-Bench, print the table, and return what was written."""
    from stpredict.evaluation.hest import JSON_SUFFIX, assess_hest, show_hest, write_hest

    path = stem.with_name(stem.name + JSON_SUFFIX)
    if path.exists() and not overwrite:
        raise ResultError(f"{path}: exists; --overwrite replaces it.")
    with tempfile.TemporaryDirectory() as folder:
        found = assess_hest(
            model, dataset, Path(folder), allow_patient_leak=allow_patient_leak, threads=threads, report=report
        )
    for line in show_hest(found):
        print(line)
    path.parent.mkdir(parents=True, exist_ok=True)  # which another call may have removed meanwhile
    write_hest(found, path, {"model": model.sha256, "data_set": dataset.name})
    return path
