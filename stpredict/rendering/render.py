"""Draw a result: make the requested pictures, keep those that exist, refuse existing ones with other settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stpredict.data.panel import match_genes
from stpredict.errors import ResultError, SlideError, StpredictError, UsageError, some
from stpredict.rendering.overlay import open_source_slide
from stpredict.rendering.styles import (
    DRAWN_BY,
    MAX_GENES_BY_DEFAULT,
    STYLES_OF_ALL_GENES,
    Drawing,
    Picture,
    RenderRequest,
    Style,
)
from stpredict.result.file import Result, nobody_measured
from stpredict.storage.files import atomic_path


def render(result: Result, request: RenderRequest, out: Path) -> Iterator[Path]:
    """Write the pictures of a result and yield each file; existing ones are yielded unchanged.

    If a style cannot be drawn, its error is raised in the end, after the others are drawn.

    Raises UsageError for genes that the result lacks, or too many to draw unasked, ResultError for existing pictures
    with other settings, SlideError if the slide is needed and missing, or another one.
    """
    if request.smooth and result.spots.layout == "given":
        raise UsageError(f"--smooth: the spots of {result.path.name} lie on no lattice, they are drawn as disks.")
    names = [gene.name for gene in result.genes]
    chosen = list(dict.fromkeys(match_genes(request.genes, names, f"genes of {result.path.name}")))
    many = [style for style in request.styles if style not in STYLES_OF_ALL_GENES]
    if not chosen and len(names) > MAX_GENES_BY_DEFAULT and many:
        raise UsageError(f"{result.path.name} holds {len(names)} genes; name those for {', '.join(many)} with --genes.")
    unmeasured = [names[i] for i in chosen if nobody_measured(result.genes[i])]
    drawable = chosen or [i for i, gene in enumerate(result.genes) if not nobody_measured(gene)]
    if unmeasured or not drawable:
        what = some(unmeasured or names)
        raise UsageError(f"{what}: no section that the model was trained on measured it; there is nothing to draw.")
    drawing = Drawing(result, request, out, drawable)
    pictures, failed = _planned(drawing)
    missing = [picture for own in pictures.values() for picture in own if request.overwrite or not _is_whole(picture)]
    in_need = {style for style, own in pictures.items() if any(each.needs_slide and each in missing for each in own)}
    if in_need:
        try:
            open_source_slide(drawing.slide_path, result).close()
        except SlideError as error:
            if request.slide:  # a call that names the wrong slide is wrong for all styles
                raise
            failed |= dict.fromkeys(in_need, error)
    for style, own in pictures.items():
        if style in in_need & failed.keys():
            continue
        try:
            for picture in own:
                if picture in missing:
                    _make(picture)
                yield from picture.files
        except (ResultError, SlideError) as error:
            failed[style] = error
    reasons = list(dict.fromkeys(failed.values()))
    if len(reasons) == 1:
        raise reasons[0]
    if reasons:
        raise ResultError(" ".join(dict.fromkeys(map(str, reasons))))


def _planned(drawing: Drawing) -> tuple[dict[Style, list[Picture]], dict[Style, StpredictError]]:
    """The pictures of each style, and the errors of styles that cannot be drawn. These do not stop the others."""
    pictures: dict[Style, list[Picture]] = {}
    failed: dict[Style, StpredictError] = {}
    for style in drawing.request.styles:
        try:
            own = list(DRAWN_BY[style](drawing))
            if not drawing.request.overwrite:
                for picture in own:
                    _refuse_what_is_another(picture)
            pictures[style] = own
        except ResultError as error:
            failed[style] = error
    return pictures, failed


def _refuse_what_is_another(picture: Picture) -> None:
    if picture.sidecar.exists():
        if not _same(picture):
            raise ResultError(f"{picture.path.name}: exists with other settings; --overwrite replaces it.")
    elif picture.path.exists():
        raise ResultError(f"{picture.path.name}: exists and {picture.sidecar.name} does not; --overwrite replaces it.")


def _make(picture: Picture) -> None:
    """Write the record, then the picture and its preview: so no picture lies beside the record of another one."""
    for file in picture.files:
        file.unlink(missing_ok=True)
    try:
        picture.path.parent.mkdir(parents=True, exist_ok=True)  # another call may have removed it
        with atomic_path(picture.sidecar) as temporary:
            temporary.write_text(json.dumps(picture.record, indent=1))
        picture.write(picture.path)
        if picture.preview:
            picture.preview(picture.preview_path)
    except BaseException as error:
        for file in (*picture.files, picture.sidecar):
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResultError(f"{picture.path.name}: cannot be written ({error.strerror or error}).") from error
        raise


def _is_whole(picture: Picture) -> bool:
    return picture.sidecar.exists() and all(file.exists() for file in picture.files)


def _same(picture: Picture) -> bool:
    """Whether the record beside a picture equals the one that would be written now, apart from the version."""
    try:
        found = json.loads(picture.sidecar.read_text())
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps(picture.record))
    return isinstance(found, dict) and {**found, "stpredict": None} == {**wanted, "stpredict": None}
