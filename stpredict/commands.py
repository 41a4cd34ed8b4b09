"""What the commands do with many inputs: carry on after one fails, print results, and sum up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stpredict.console import progress_of_spots, report
from stpredict.data.panel import read_gene_list
from stpredict.errors import ResultError, StpredictError, UsageError
from stpredict.prediction import Request, predict_slides
from stpredict.weights import find_model, list_models, load_model

if TYPE_CHECKING:
    from stpredict.training import Settings


def predict_command(slides: Sequence[Path], model_name: str, request: Request, out: Path, render: bool) -> int:
    """Predict slides and print the results' paths. Returns the exit code."""
    model = load_model(find_model(model_name))
    failures: list[tuple[Path, str]] = []
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
                failures += _render_all(
                    [outcome.result], request.genes, ["heatmap", "overlay"], out, outcome.slide, request.overwrite
                )
    return _sum_up(failures, len(slides), "slides")


def render_command(
    results: Sequence[Path], genes: Sequence[str], styles: Sequence[str], out: Path, slide: Path | None, overwrite: bool
) -> int:
    """Draw results and print the pictures' paths. Returns the exit code."""
    from stpredict.rendering.pictures import STYLES

    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        raise UsageError(f"--style {','.join(unknown)}: choose from {', '.join(STYLES)}.")
    if slide and len(results) > 1:
        raise UsageError("--slide names one slide; render its result alone.")
    if len(results) == 1 and not results[0].exists():
        raise UsageError(f"{results[0]}: no such file.")
    _make_folder(out)
    return _sum_up(_render_all(results, genes, styles, out, slide, overwrite), len(results), "results")


def _render_all(
    results: Sequence[Path], genes: Sequence[str], styles: Sequence[str], out: Path, slide: Path | None, overwrite: bool
) -> list[tuple[Path, str]]:
    from stpredict.rendering.pictures import Style, render
    from stpredict.result import read_result

    failures = []
    for path in results:
        try:
            for picture in render(read_result(path), genes, cast(list[Style], list(styles)), out, slide, overwrite):
                print(picture, flush=True)
        except UsageError:
            raise
        except StpredictError as error:
            failures.append((path, str(error)))
            report(f"stpredict: {error}")
    return failures


def tile_command(
    inputs: Sequence[Path], model_name: str, request: Request, out: Path, patches: bool, unlabelled: int
) -> int:
    """Write grids of slides and tiles of data sets, and print their paths. Returns the exit code."""
    from stpredict.data.dataset import read_dataset
    from stpredict.data.tiles import write_tiles
    from stpredict.tiling import tile_slide

    model = load_model(find_model(model_name))
    _make_folder(out)
    failures = []
    for path in inputs:
        try:
            if path.is_dir():
                tiles = out / f"{path.resolve().name}.tiles.h5"
                write_tiles(
                    read_dataset(path),
                    tiles,
                    patch_px=model.card["patch_px"],
                    mpp=request.mpp,
                    unlabelled=unlabelled,
                    report=report,
                )
                print(tiles, flush=True)
            else:
                for written in tile_slide(path, model, request, out, patches):
                    print(written, flush=True)
        except UsageError:
            raise
        except StpredictError as error:
            if len(inputs) == 1:
                raise
            failures.append((path, str(error)))
            report(f"stpredict: {error}")
    return _sum_up(failures, len(inputs), "inputs")


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
        raise UsageError(f"training needs {error.name}: pip install 'stpredict[train]'.") from error

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


def _sum_up(failures: Sequence[tuple[Path, str]], total: int, what: str) -> int:
    """The exit code, after a table of failures where there were several inputs."""
    if failures and total > 1:
        report(f"{len(failures)} of {total} {what} failed:")
        width = max(len(str(path)) for path, _ in failures)
        for path, reason in failures:
            report(f"  {path!s:{width}}  {reason}")
    return ResultError.exit_code if failures else 0
