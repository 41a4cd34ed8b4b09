"""`stpredict render`: pictures, tables and pages of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stpredict.cli.options import Exclude, Out, Overwrite, one_of, parse_exclude, parse_genes, split
from stpredict.cli.program import app, command
from stpredict.errors import UsageError

DEFAULT_STYLES = "heatmap,overlay"
#: The styles that use an option. All styles use the options that are not listed.
USED_BY = {
    "--slide": ("overlay", "report"),
    "--cmap": ("heatmap", "overlay", "report"),
    "--scale": ("heatmap", "overlay", "report"),
    "--scale-from": ("heatmap", "overlay", "report"),
    "--vmin": ("heatmap", "overlay", "report"),
    "--vmax": ("heatmap", "overlay", "report"),
    "--opacity": ("overlay",),
    "--smooth": ("heatmap", "overlay", "pca"),
    "--downsample": ("heatmap", "overlay", "channels", "pca"),
    "--origin": ("heatmap", "overlay", "channels", "spots", "pca", "csv"),
    "--gzip": ("spots",),
}


@command(app, "render")
def render(
    results: Annotated[list[Path], typer.Argument(help="Results of predict, or folders of them.", show_default=False)],
    genes: Annotated[
        list[str] | None, typer.Option("--genes", help="Genes, separated by commas.", show_default="all, if at most 16")
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            help="What to draw, separated by commas: heatmap, overlay, channels, spots, pca, report, csv.",
            show_default=DEFAULT_STYLES,
        ),
    ] = None,
    out: Out = Path(),
    slide: Annotated[Path | None, typer.Option(help="The slide, if it is no longer where it was predicted.")] = None,
    cmap: Annotated[
        str,
        typer.Option(
            help="Colour map, also of the report: viridis, cividis, magma, inferno, plasma, mako, rocket or batlow."
        ),
    ] = "viridis",
    scale: Annotated[
        str, typer.Option(help="Colours span the model card's range of the gene (card), or this slide's (slide).")
    ] = "card",
    scale_from: Annotated[
        list[Path] | None,
        typer.Option(help="Take one range for all slides from this result, or folder of results; can be repeated."),
    ] = None,
    vmin: Annotated[float | None, typer.Option(help="Value of the first colour.")] = None,
    vmax: Annotated[float | None, typer.Option(help="Value of the last colour.")] = None,
    opacity: Annotated[float, typer.Option(help="Opacity of the map over the slide, above 0 and at most 1.")] = 0.5,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Heatmap, overlay and pca: interpolate between spots.")
    ] = False,
    downsample: Annotated[
        float, typer.Option(help="Slide pixels per pixel of a TIFF, which states its um per pixel accordingly.")
    ] = 1.0,
    origin: Annotated[
        str, typer.Option(help="Where coordinates begin: slide; or bounds, if QuPath crops the slide to them.")
    ] = "slide",
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress the spots' GeoJSON.")] = False,
    exclude: Exclude = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw results: pyramidal TIFFs for QuPath, channels, spots, tables, or a page for the browser.

    Examples: stpredict render slide.h5ad --genes GNAS; stpredict render *.h5ad --style report
    """
    from stpredict.colour_maps import COLOUR_MAPS
    from stpredict.commands.render import render_command
    from stpredict.rendering.colour import SCALES, ScaleRequest
    from stpredict.rendering.pca import COMPONENTS
    from stpredict.rendering.styles import STYLES, RenderRequest
    from stpredict.result.frame import ORIGINS

    if scale_from and scale != "card":
        raise UsageError("--scale-from takes one range from many slides; leave --scale out.")
    named_styles = split([DEFAULT_STYLES] if style is None else style)
    if not named_styles:
        raise UsageError(f"--style: choose from {', '.join(STYLES)}.")
    styles = [one_of("--style", name, STYLES) for name in dict.fromkeys(named_styles)]
    refuse_unused(styles, {
        "--slide": slide is not None, "--cmap": cmap != COLOUR_MAPS[0], "--scale": scale != ScaleRequest.kind,
        "--scale-from": bool(scale_from), "--vmin": vmin is not None, "--vmax": vmax is not None,
        "--opacity": opacity != RenderRequest.opacity, "--smooth": smooth,
        "--downsample": downsample != RenderRequest.downsample, "--origin": origin != RenderRequest.origin,
        "--gzip": gzip,
    })  # fmt: skip
    named = parse_genes(genes)
    if styles == ["pca"] and 0 < len(set(named)) < COMPONENTS:
        raise UsageError(f"--style pca: three components need at least three genes; --genes names {len(set(named))}.")
    request = RenderRequest(
        genes=named, styles=styles,
        slide=slide, smooth=smooth, opacity=opacity, downsample=downsample, compress=gzip, overwrite=overwrite,
        origin=one_of("--origin", origin, ORIGINS),
        scale=ScaleRequest(
            one_of("--scale", scale, SCALES), vmin, vmax, colour_map=one_of("--cmap", cmap, COLOUR_MAPS)
        ),
    )  # fmt: skip
    raise typer.Exit(render_command(results, request, scale_from or [], out, parse_exclude(exclude)))


def refuse_unused(styles: Sequence[str], given: dict[str, bool]) -> None:
    """Raises UsageError for an option that was `given` although no style uses it."""
    for option, was_given in given.items():
        if was_given and not set(USED_BY[option]) & set(styles):
            raise UsageError(f"{option}: only for {', '.join(USED_BY[option])}; --style names {', '.join(styles)}.")
