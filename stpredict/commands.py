"""What the commands do with many inputs: carry on after one fails, print results, and sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpredict.console import progress_of_spots, report
from stpredict.data.panel import read_gene_list
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError
from stpredict.prediction import Request, predict_slides
from stpredict.weights import Model, find_model, list_models, load_model

if TYPE_CHECKING:
    from stpredict.engines import EngineRequest
    from stpredict.rendering.colour import Cohort
    from stpredict.rendering.styles import RenderRequest
    from stpredict.training import Settings

Failure = tuple[Path, str]


def predict_command(slides: Sequence[Path], model_name: str, request: Request, out: Path, render: bool) -> int:
    """Predict slides and print the results' paths. Returns the exit code."""
    from stpredict.rendering.styles import MAX_GENES_BY_DEFAULT, RenderRequest

    model = load_model(find_model(model_name))
    if render and not request.genes and len(model.panel) > MAX_GENES_BY_DEFAULT:
        raise UsageError(f"--render draws up to {MAX_GENES_BY_DEFAULT} genes; name those to predict with --genes.")
    failures: list[Failure] = []
    with progress_of_spots() as (progress, say):
        for outcome in predict_slides(slides, model, request, out, say, progress):
            if outcome.error is not None or outcome.result is None:
                failures.append((outcome.slide, str(outcome.error)))
                say(f"stpredict: {outcome.error}")
                continue
            if outcome.status == "up to date":
                say(f"{outcome.result}: up to date")
            print(outcome.result, flush=True)
            if render:
                draw = partial(_render, RenderRequest(slide=outcome.slide, overwrite=request.overwrite), out)
                failures += _for_each([outcome.result], draw)
    return _sum_up(failures, len(slides), "slides")


def render_command(results: Sequence[Path], request: RenderRequest, scale_from: Sequence[Path], out: Path) -> int:
    """Draw results, all on the scale of those in `scale_from`; print the pictures' paths. Returns the exit code."""
    from stpredict.result import read_provenance

    if request.slide and len(results) > 1:
        raise UsageError("--slide names one slide; render its result alone.")
    for path in results:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the results in it ({path / '*.h5ad'}).")
    if len(results) == 1 and not results[0].exists():
        raise UsageError(f"{results[0]}: no such file.")
    if scale_from:
        request = replace(request, scale=replace(request.scale, cohort=_read_cohort(scale_from)))
    _make_folder(out)
    drawn: dict[str, Path] = {}

    def draw(path: Path) -> Iterator[Path]:
        name = read_provenance(path)["slide"]["name"]
        if drawn.setdefault(name, path) != path:
            raise ResultError(f"{path}: of the same slide as {drawn[name]}; draw it into a folder (-o) of its own.")
        yield from _render(request, out, path)

    return _sum_up(_for_each(results, draw), len(results), "results")


def _render(request: RenderRequest, out: Path, path: Path) -> Iterator[Path]:
    from stpredict.rendering.render import render
    from stpredict.result import read_result

    yield from render(read_result(path), request, out)


def _read_cohort(paths: Sequence[Path]) -> Cohort:
    """The results among `paths`, and those in the folders among them that can be read.

    Raises UsageError if there are none, or one that was named cannot be read.
    """
    from stpredict.rendering.colour import Cohort
    from stpredict.result import read_result

    results = []
    for path in paths:
        for file in sorted(path.glob("*.h5ad")) if path.is_dir() else [path]:
            try:
                results.append(replace(read_result(file), thumbnail=np.empty((0, 0, 3), np.uint8)))  # a cohort is large
            except ResultError as error:
                if not path.is_dir():
                    raise UsageError(f"--scale-from: {error}") from error
                report(f"stpredict: --scale-from leaves out {error}")
    if not results:
        raise UsageError(f"--scale-from {paths[0]}: holds no results.")
    return Cohort(results)


def tile_command(
    inputs: Sequence[Path], model_name: str, request: Request, out: Path, patches: bool, unlabelled: int
) -> int:
    """Write grids of slides and tiles of data sets, and print their paths. Returns the exit code."""
    from stpredict.tiling import tile_slide

    model = load_model(find_model(model_name))
    _make_folder(out)

    def tile(path: Path) -> Iterator[Path]:
        if path.is_dir():
            yield _tile_dataset(path, model, request, out, unlabelled)
        else:
            yield from tile_slide(path, model, request, out, patches)

    return _sum_up(_for_each(inputs, tile), len(inputs), "inputs")


def _tile_dataset(path: Path, model: Model, request: Request, out: Path, unlabelled: int) -> Path:
    try:
        from stpredict.data.dataset import read_dataset
        from stpredict.data.tiles import write_tiles
    except ModuleNotFoundError as error:
        raise _needs_training_extra(error) from error

    tiles = out / f"{path.resolve().name}.tiles.h5"
    write_tiles(
        read_dataset(path),
        tiles,
        patch_px=model.card["patch_px"],
        mpp=request.mpp,
        unlabelled=unlabelled,
        report=report,
    )
    return tiles


def _for_each(inputs: Sequence[Path], work: Callable[[Path], Iterator[Path]]) -> list[Failure]:
    """Print what comes of each input; one that fails costs only itself. What it is told alone, a single one raises."""
    failures: list[Failure] = []
    for path in inputs:
        try:
            for written in work(path):
                print(written, flush=True)
        except BrokenPipeError:
            raise
        except (StpredictError, OSError) as error:
            if len(inputs) == 1 and isinstance(error, UsageError):
                raise
            if len(inputs) == 1 and isinstance(error, SlideError) and error.remediable:
                raise UsageError(str(error)) from error
            reason = str(error) if isinstance(error, StpredictError) else f"{path.name}: {error.strerror or error}."
            failures.append((path, reason))
            report(f"stpredict: {reason}")
        except Exception as error:
            if os.environ.get("STPREDICT_DEBUG"):
                raise
            reason = f"{path.name}: unexpected {type(error).__name__}: {error} (stpredict --debug says where)."
            failures.append((path, reason))
            report(f"stpredict: {reason}")
    return failures


def _needs_training_extra(error: ModuleNotFoundError) -> UsageError:
    return UsageError(f"this needs {error.name}: install stpredict with its extra [train].")


def train_command(
    dataset: Path, out: Path, settings: Settings, *, genes_file: Path | None, genes_required: Sequence[str],
    panel_size: int | None, folds: str, hold_out: Sequence[str], unlabelled: int, mpp: float | None, licence: str,
    device: str, threads: int, overwrite: bool,
) -> None:  # fmt: skip
    """Train a model and print its path."""
    try:
        from stpredict.crossvalidation import Panel, train_model
        from stpredict.training import is_main_process
    except ModuleNotFoundError as error:
        raise _needs_training_extra(error) from error

    if folds not in ("patient", "section", "none"):
        raise UsageError(f"--folds {folds}: choose patient, section or none.")
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: a model's file name ends in .safetensors.")
    _make_folder(out.parent)
    panel = Panel(read_gene_list(genes_file) if genes_file else (), panel_size, tuple(genes_required))
    train_model(
        dataset, out, settings, panel, folds=None if folds == "none" else folds, hold_out=hold_out,
        unlabelled=unlabelled, mpp=mpp, licence=licence, device=device, threads=threads, overwrite=overwrite,
        report=lambda line: report(line) if is_main_process() else None,
    )  # fmt: skip
    if is_main_process():
        print(out)


def evaluate_command(
    what: str, dataset: Path, out: Path, engine: EngineRequest, min_depth: int, allow_patient_leak: bool,
    overwrite: bool,
) -> None:  # fmt: skip
    """Score a model or a result on measured sections, print the table, and print the paths of what was written.

    Raises ResultError if an evaluation of these names exists, unless `overwrite`.
    """
    try:
        from stpredict.assessment import assess
        from stpredict.assessment_report import JSON_SUFFIX, show, write
        from stpredict.result import read_result
    except ModuleNotFoundError as error:
        raise _needs_training_extra(error) from error

    source = read_result(Path(what)) if what.endswith(".h5ad") else load_model(find_model(what))
    _make_folder(out)
    stem = out / f"{source.name}-{dataset.name.split('.')[0]}"
    if (earlier := stem.with_name(stem.name + JSON_SUFFIX)).exists() and not overwrite:
        raise ResultError(f"{earlier}: exists; --overwrite replaces it.")
    found = assess(
        source, dataset, min_depth=min_depth, allow_patient_leak=allow_patient_leak, engine=engine, report=report
    )
    for line in show(found):
        print(line)
    scored = {"model": source.sha256} if isinstance(source, Model) else {"result": source.digest()}
    for path in write(found, stem, {**scored, "data_set": dataset.name, "min_depth": min_depth}):
        print(path)


def list_command() -> None:
    """Print the installed models, one a line."""
    for name, path in list_models().items():
        try:
            model = load_model(path)
        except StpredictError as error:
            report(f"stpredict: {error}")
            continue
        print(f"{name}  {model.card['architecture']}, {len(model.panel)} genes, {model.card['mpp']:g} um/px")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {out}: cannot be made ({error.strerror}).") from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"-o {out}: cannot be written to.")


def _sum_up(failures: Sequence[Failure], total: int, what: str) -> int:
    """The exit code, after a table of failures where there were several inputs."""
    if failures and total > 1:
        report(f"{len(failures)} of {total} {what} failed:")
        width = max(len(str(path)) for path, _ in failures)
        for path, reason in failures:
            report(f"  {path!s:{width}}  {reason.removeprefix(f'{path.name}: ').removeprefix(f'{path}: ')}")
    return ResultError.exit_code if failures else 0
