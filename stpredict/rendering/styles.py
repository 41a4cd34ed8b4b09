"""The pictures of each style: their names, the JSON record beside them, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any, Literal

import stpredict
from stpredict.errors import UsageError
from stpredict.rendering.account import TURNED, caveats, in_words, tested
from stpredict.rendering.cells import Cells, Layer, make_cells, make_layer
from stpredict.rendering.channels import GENES_PER_FILE, write_channels
from stpredict.rendering.colour import ColourScale, ScaleRequest, colour_scale
from stpredict.rendering.overlay import open_source_slide, write_overlay
from stpredict.rendering.pca import Components, principal_components
from stpredict.rendering.preview import draw_preview, without_expected
from stpredict.rendering.report import write_report
from stpredict.rendering.spots import write_spots
from stpredict.rendering.table import write_table
from stpredict.rendering.tiff import write_rgb
from stpredict.result.file import Gene, Result
from stpredict.result.frame import Frame, Origin, make_frame

Style = Literal["heatmap", "overlay", "channels", "spots", "pca", "report", "csv"]
STYLES: tuple[Style, ...] = ("heatmap", "overlay", "channels", "spots", "pca", "report", "csv")
STYLES_BY_DEFAULT: tuple[Style, ...] = ("heatmap", "overlay")
#: If no gene is named, these styles draw all genes of a result, however many.
STYLES_OF_ALL_GENES = {"pca", "csv"}
MAX_GENES_BY_DEFAULT = 16
GEOJSON = (".geojson", ".geojson.gz")


@dataclass(frozen=True)
class RenderRequest:
    """What to draw and how. No `genes` means all genes of the result; no `slide`, the slide that the result names."""

    genes: Sequence[str] = ()
    styles: Sequence[Style] = STYLES_BY_DEFAULT
    slide: Path | None = None
    scale: ScaleRequest = field(default_factory=ScaleRequest)
    smooth: bool = False
    opacity: float = 0.5
    downsample: float = 1.0
    origin: Origin = "slide"
    compress: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise UsageError(f"--opacity {self.opacity:g}: must be above 0 and at most 1.")
        if not 1 <= self.downsample < inf:
            raise UsageError(f"--downsample {self.downsample:g}: must be at least 1.")


@dataclass(frozen=True)
class Picture:
    """A file to write, the JSON record beside it, and how to write the file (and its preview, if it has one)."""

    path: Path
    stem: str
    record: dict[str, Any]
    write: Callable[[Path], None]
    preview: Callable[[Path], None] | None
    needs_slide: bool

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(f"{self.stem}.json")

    @property
    def preview_path(self) -> Path:
        return self.path.with_name(f"{self.stem}.png")

    @property
    def files(self) -> list[Path]:
        return [self.path, self.preview_path] if self.preview else [self.path]


class Drawing:
    """A result, how to draw it, and the parts that its pictures share."""

    def __init__(self, result: Result, request: RenderRequest, out: Path, chosen: list[int]) -> None:
        self.result, self.request, self.out, self.chosen = result, request, out, chosen
        self.cells: Cells = make_cells(result.spots, result.canvas)
        self.frame: Frame = make_frame(result.canvas, request.origin, request.downsample)
        self.slide_path = request.slide or result.path.parent / result.provenance["slide"]["path"]
        self.genes: list[Gene] = [result.genes[index] for index in chosen]

    def picture(
        self, what: str, suffix: str, genes: Sequence[int], record: dict[str, Any], write: Callable[[Path], None],
        preview: Callable[[Path], None] | None = None, needs_slide: bool = False,
    ) -> Picture:  # fmt: skip
        """A picture of some genes, by index, with the name SLIDE.`what`; its record also names its sources."""
        stem = f"{self.result.name}.{what}"
        source = {
            "file": f"{stem}{suffix}",
            "slide": self.result.name,
            "model": self.result.provenance["model"],
            **({"tta": TURNED} if "tta" in self.result.provenance else {}),
            "result": self.result.digest_of(genes),
            "stpredict": stpredict.__version__,
        }
        return Picture(self.out / f"{stem}{suffix}", stem, {**record, **source}, write, preview, needs_slide)

    def scale(self, index: int) -> ColourScale:
        return colour_scale(self.result, index, self.request.scale)

    def place(self) -> dict[str, Any]:
        """Where the picture lies on the slide, for its record."""
        return {"origin": self.request.origin, "downsample": self.request.downsample}

    def gene_layer(self, gene: Gene, scale: ColourScale) -> Layer:
        values = self.result.expression(gene.name)[:, None]
        return make_layer(self.cells, values, scale.colours, self.request.smooth)


def _gene_pictures(drawing: Drawing, style: Literal["heatmap", "overlay"]) -> Iterator[Picture]:
    names = [gene.name for gene in drawing.result.genes]
    for index, gene in zip(drawing.chosen, drawing.genes, strict=True):
        scale = drawing.scale(index)
        opacity = drawing.request.opacity if style == "overlay" else None
        record = {
            **scale.as_dict(),
            "below_low": "first colour",
            "above_high": "last colour",
            **tested(gene),
            **drawing.place(),
            "smooth": drawing.request.smooth,
            **({"opacity": opacity} if opacity else {}),
        }

        def write(path: Path, gene: Gene = gene, scale: ColourScale = scale) -> None:
            layer = drawing.gene_layer(gene, scale)
            if style == "heatmap":
                write_rgb(path, drawing.frame, layer)
                return
            with open_source_slide(drawing.slide_path, drawing.result) as slide:
                write_overlay(path, drawing.frame, layer, drawing.request.opacity, slide)

        def preview(path: Path, gene: Gene = gene, scale: ColourScale = scale, opacity: float | None = opacity) -> None:
            title = f"{gene.name}  predicted on  {drawing.result.name}"
            notes = (f"{in_words(gene)}; colours: {scale.range_from}", caveats(drawing.result))
            draw_preview(path, drawing.result, drawing.gene_layer(gene, scale), opacity, title, notes, scale)

        yield drawing.picture(
            f"{file_name(gene.name, names)}.{style}", ".tif", [index], record, write, preview, style == "overlay"
        )


def _channel_pictures(drawing: Drawing) -> Iterator[Picture]:
    parts = [drawing.chosen[i : i + GENES_PER_FILE] for i in range(0, len(drawing.chosen), GENES_PER_FILE)]
    for number, chosen in enumerate(parts, 1):
        genes = [drawing.result.genes[index] for index in chosen]
        record = {**_measured(drawing, genes), **drawing.place(), "no_spot": 0}

        def write(path: Path, genes: list[Gene] = genes) -> None:
            names = [gene.name for gene in genes]
            values = [drawing.result.expression(name) for name in names]
            write_channels(path, drawing.frame, drawing.cells, drawing.result.name, names, values)

        what = "channels" if len(parts) == 1 else f"channels-{number}"
        yield drawing.picture(what, ".ome.tif", chosen, record, write)


def _table_pictures(drawing: Drawing, style: Literal["spots", "csv"]) -> Iterator[Picture]:
    frame = make_frame(drawing.result.canvas, drawing.request.origin)

    def write(path: Path) -> None:
        if style == "csv":
            write_table(path, frame, drawing.result, drawing.chosen)
            return
        if drawing.request.overwrite:  # the record would not describe a file in the other form any more
            for suffix in GEOJSON:
                path.with_name(f"{drawing.result.name}.spots{suffix}").unlink(missing_ok=True)
        write_spots(path, frame, drawing.result, drawing.chosen)

    record = {**_measured(drawing, drawing.genes), "origin": drawing.request.origin}
    if style == "csv":
        yield drawing.picture("expression", ".csv", drawing.chosen, record, write)
    else:
        yield drawing.picture("spots", GEOJSON[drawing.request.compress], drawing.chosen, record, write)


def _pca_pictures(drawing: Drawing) -> Iterator[Picture]:
    components = principal_components(drawing.result, drawing.chosen)
    layer = make_layer(drawing.cells, components.scores, components.colours, drawing.request.smooth)
    unit = drawing.result.provenance["expression_unit"]
    record = {
        "unit": unit,
        **_describe(components, drawing.genes),
        **drawing.place(),
        "smooth": drawing.request.smooth,
    }

    def preview(path: Path) -> None:
        title = f"Principal components of {len(drawing.genes)} genes predicted on  {drawing.result.name}"
        explained = ", ".join(
            f"{colour} {share:.0%}"
            for colour, share in zip(("red", "green", "blue"), components.explained, strict=True)
        )
        notes = (f"variance of {without_expected(unit)} explained: {explained}", caveats(drawing.result))
        draw_preview(path, drawing.result, layer, None, title, notes, None)

    yield drawing.picture(
        "pca", ".tif", drawing.chosen, record, lambda path: write_rgb(path, drawing.frame, layer), preview
    )


def _report_pictures(drawing: Drawing) -> Iterator[Picture]:
    scales = [drawing.scale(index) for index in drawing.chosen]

    def write(path: Path) -> None:
        with open_source_slide(drawing.slide_path, drawing.result) as slide:
            write_report(path, drawing.result, drawing.chosen, scales, slide)

    record = {"scales": [scale.as_dict() for scale in scales], **_measured(drawing, drawing.genes)}
    yield drawing.picture("report", ".html", drawing.chosen, record, write, needs_slide=True)


def file_name(gene: str, others: Sequence[str] = ()) -> str:
    """A gene's name as part of a file name. If it has to be changed, a digest keeps it unique.

    The digest is also added if another gene's name differs only in case, which some file systems ignore.
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", gene)[:64]
    alone = not any(other != gene and other.casefold() == gene.casefold() for other in others)
    return safe if safe == gene and alone else f"{safe}-{sha256(gene.encode()).hexdigest()[:8]}"


def _measured(drawing: Drawing, genes: Sequence[Gene]) -> dict[str, Any]:
    """Genes with their unit and reliability, for the record of a file of values."""
    return {
        "unit": drawing.result.provenance["expression_unit"],
        "genes": [{"gene": gene.name, **tested(gene)} for gene in genes],
    }


def _describe(components: Components, genes: Sequence[Gene]) -> dict[str, Any]:
    """Components for their record: the share of variance, the range of colours, and each gene's loading."""
    return {
        colour: {
            "explained_variance": round(float(components.explained[i]), 4),
            "low": round(float(components.ranges[0, i]), 4),
            "high": round(float(components.ranges[1, i]), 4),
            "loadings": {
                gene.name: round(float(loading), 4) for gene, loading in zip(genes, components.loadings[i], strict=True)
            },
        }
        for i, colour in enumerate(("red", "green", "blue"))
    }


DRAWN_BY: dict[str, Callable[[Drawing], Iterator[Picture]]] = {
    "heatmap": lambda drawing: _gene_pictures(drawing, "heatmap"),
    "overlay": lambda drawing: _gene_pictures(drawing, "overlay"),
    "channels": _channel_pictures,
    "spots": lambda drawing: _table_pictures(drawing, "spots"),
    "pca": _pca_pictures,
    "report": _report_pictures,
    "csv": lambda drawing: _table_pictures(drawing, "csv"),
}
