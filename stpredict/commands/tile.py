"""Write grids of slides and tiles of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stpredict.commands.inputs import for_each, needs_training_extra, sum_up
from stpredict.console import report
from stpredict.errors import UnknownLayoutError, UsageError
from stpredict.model.file import Model, find_model, load_model
from stpredict.prediction.job import slide_name
from stpredict.prediction.request import Request, check_request
from stpredict.storage.files import demand_new, is_folder, output_folders


def tile_command(
    inputs: Sequence[Path], model_name: str, request: Request, out: Path, patches: bool, unlabelled: int,
    bin_um: float | None, overwrite: bool, patch_format: Literal["raw", "jpeg"] = "raw", tissue: Sequence[Path] = (),
    **of_sections: Any,
) -> int:  # fmt: skip
    """Write grids of slides and tiles of data sets, and print their paths. Returns the exit code.

    `of_sections` are fields of `Reading`. A table names the sections that were left out, if any were.
    """
    from stpredict.prediction.tiling import tile_slide

    model = load_model(find_model(model_name))
    check_request(model, request)
    outputs: dict[str, Path] = {}
    left_out: list[str] = []
    for path in inputs:
        name = path.resolve().name if is_folder(path) else slide_name(path)
        other = outputs.setdefault(name, path)
        if other != path:
            raise UsageError(
                f"{other} and {path} would both be written to {out / name}.*; give them a folder (-o) each."
            )

    def tile(path: Path) -> Iterator[Path]:
        out.mkdir(parents=True, exist_ok=True)  # another call may have removed it
        if is_folder(path):
            tiles = out / f"{path.resolve().name}.tiles.h5"
            if not overwrite:
                demand_new(tiles)
            how = (unlabelled, bin_um, patch_format, tissue)
            left_out.extend(_tile_dataset(path, model, request, tiles, *how, **of_sections))
            yield tiles
        else:
            yield from tile_slide(path, model, request, out, patches, overwrite)

    with output_folders(out):
        failures = for_each(inputs, tile)
    return sum_up(failures, len(inputs), "inputs") or int(bool(left_out))


def _tile_dataset(
    path: Path, model: Model, request: Request, tiles: Path, unlabelled: int, bin_um: float | None,
    patch_format: Literal["raw", "jpeg"], tissue: Sequence[Path], **of_sections: Any,
) -> list[str]:  # fmt: skip
    """Write a data set's tiles. Returns what was left out, sections and slides, which tables beside the tiles name."""
    try:
        from stpredict.data.bins import Bins
        from stpredict.data.cutting import settle_cut, write_tiles
        from stpredict.data.dataset import read_asked
        from stpredict.data.reading import Reading, about_left_out, write_broken
        from stpredict.training.tissue import NO_TISSUE, read_tissue
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    try:
        reading = Reading(Bins(bin_um), **of_sections)
        sections, broken = read_asked(path, reading)
    except UnknownLayoutError as error:
        raise UsageError(f"{str(error).removesuffix('.')}; for slides, name the files.") from error
    slides = NO_TISSUE
    if tissue:
        mpp = settle_cut(sections, model.card["patch_px"], model.views, request.mpp)
        slides = read_tissue(tissue, sections, mpp, unlabelled, reading.skip_broken, report)
    write_tiles(
        sections,
        tiles,
        patch_px=model.card["patch_px"],
        views=model.views,
        mpp=request.mpp,
        tissue=slides.slides,
        unlabelled=unlabelled,
        threads=request.engine.threads,
        patch_format=patch_format,
        report=report,
    )
    left_out: list[str] = []
    things: tuple[tuple[Mapping[str, str], str, Literal["section", "slide"]], ...] = (
        (broken, "broken", "section"),
        (slides.broken, "broken-tissue", "slide"),
    )
    for names, kind, thing in things:
        table = tiles.with_name(f"{path.resolve().name}.{kind}.csv")
        write_broken(names, table, thing)
        if names:
            report(about_left_out(list(names), table, thing))
        left_out.extend(names)
    return left_out
