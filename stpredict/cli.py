"""The command line: options and help. Each command calls one function elsewhere; heavy imports wait until it runs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from stpredict import DEFAULT_MODEL, __version__
from stpredict.errors import StpredictError, UsageError
from stpredict.machine import usable_cores

INTERRUPTED = 130
Choice = TypeVar("Choice", bound=str)

app = typer.Typer(
    help="Predict spatial gene expression from H&E whole-slide images. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="List, show and import models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the output.")]
ModelOption = Annotated[str, typer.Option("-m", "--model", help="Name of an installed model, or a model file.")]
Genes = Annotated[str | None, typer.Option("--genes", help="Genes, separated by commas.", show_default="all")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads.", show_default="all")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists with other settings.")]
Pitch = Annotated[
    float | None, typer.Option(help="Distance between spots, um.", show_default="the model's spot diameter")
]
LayoutOption = Annotated[str, typer.Option("--layout", help="Lattice of spots: square or hex.")]
SpotsFile = Annotated[
    Path | None,
    typer.Option(
        help="CSV with columns x and y, level-0 pixels: predict there; pitch, layout and tissue then do not matter."
    ),
]
MinTissue = Annotated[float, typer.Option(help="Smallest tissue fraction of a spot that is predicted.")]
MppOption = Annotated[
    float | None, typer.Option("--mpp", help="Micrometres per level-0 pixel, whatever the slide says.")
]
Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Accept slides coarser than the model was trained on.")
]


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors become one line on stderr and an exit code."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except StpredictError as error:
                _fail(str(error), error.exit_code)
            except KeyboardInterrupt:
                _fail("interrupted; the same command goes on where it stopped.", INTERRUPTED)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except OSError as error:
                _fail(f"{error.strerror or error}{f': {Path(error.filename).name}' if error.filename else ''}.", 1)

        return group.command(name, no_args_is_help=name not in ("doctor", "list"))(run)

    return decorate


def _fail(message: str, code: int) -> None:
    if os.environ.get("STPREDICT_DEBUG"):
        raise
    print(f"stpredict: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["STPREDICT_DEBUG"] = "1"
    if version:
        print(__version__)
        raise typer.Exit


@command(app, "predict")
def predict(
    slides: Annotated[list[Path], typer.Argument(help="Slides.", show_default=False)],
    genes: Genes = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Out = Path(),
    pitch: Pitch = None,
    layout: LayoutOption = "square",
    spots: SpotsFile = None,
    min_tissue: MinTissue = 0.25,
    mpp: MppOption = None,
    allow_upsampling: Upsampling = False,
    engine: Annotated[str, typer.Option(help="auto, openvino or eager.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=0, help="Spots per batch; 0 lets the engine choose.")] = 0,
    threads: Threads = None,
    render: Annotated[bool, typer.Option("--render", help="Also draw heatmaps and overlays.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict expression on slides: one SLIDE.h5ad each, which anndata and scanpy open.

    Example: stpredict predict slide.svs --genes GNAS,DDX5
    """
    from stpredict.commands import predict_command
    from stpredict.engines import EngineRequest
    from stpredict.prediction import Request

    request = Request(
        genes=_genes(genes), pitch_um=pitch, layout=_layout(layout), spots_file=spots, min_tissue=min_tissue, mpp=mpp,
        allow_upsampling=allow_upsampling, overwrite=overwrite,
        engine=EngineRequest(engine, precision, device, batch_size, threads or usable_cores()),
    )  # fmt: skip
    raise typer.Exit(predict_command(slides, model, request, out, render))


@command(app, "render")
def render(
    results: Annotated[list[Path], typer.Argument(help="Results of predict.", show_default=False)],
    genes: Annotated[
        str | None, typer.Option("--genes", help="Genes, separated by commas.", show_default="all, if at most 16")
    ] = None,
    style: Annotated[
        str, typer.Option(help="Of heatmap, overlay, channels, spots, pca, report and csv, separated by commas.")
    ] = "heatmap,overlay",
    out: Out = Path(),
    slide: Annotated[Path | None, typer.Option(help="The slide, if it is no longer where it was predicted.")] = None,
    cmap: Annotated[
        str,
        typer.Option(
            help="Heatmap, overlay and report: viridis, cividis, magma, inferno, plasma, mako, rocket or batlow."
        ),
    ] = "viridis",
    scale: Annotated[
        str, typer.Option(help="Colours span the model card's range of the gene (card), or this slide's (slide).")
    ] = "card",
    scale_from: Annotated[
        list[Path] | None,
        typer.Option(help="A result, or a folder of them, to take one range for all slides from; can be repeated."),
    ] = None,
    vmin: Annotated[float | None, typer.Option(help="Value of the first colour.")] = None,
    vmax: Annotated[float | None, typer.Option(help="Value of the last colour.")] = None,
    opacity: Annotated[float, typer.Option(help="Of the map over the slide, above 0 and at most 1.")] = 0.5,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Heatmap, overlay and pca: interpolate between spots.")
    ] = False,
    downsample: Annotated[
        float, typer.Option(help="TIFFs: slide pixels per pixel of the picture, whose um per pixel stay right.")
    ] = 1.0,
    origin: Annotated[
        str, typer.Option(help="Where coordinates begin: slide, or bounds as QuPath crops slides that have them.")
    ] = "slide",
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress the spots' GeoJSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw results: pyramidal TIFFs for QuPath, channels, spots, tables, or a page for the browser.

    Examples: stpredict render slide.h5ad --genes GNAS; stpredict render *.h5ad --style report
    """
    from stpredict.commands import render_command
    from stpredict.rendering.colour import COLOUR_MAPS, SCALES, ScaleRequest
    from stpredict.rendering.frame import ORIGINS
    from stpredict.rendering.styles import STYLES, RenderRequest

    if scale_from and scale != "card":
        raise UsageError("--scale-from takes one range from many slides; leave --scale out.")
    if not _split(style):
        raise UsageError(f"--style: choose from {', '.join(STYLES)}.")
    request = RenderRequest(
        genes=_genes(genes), styles=[_one_of("--style", name, STYLES) for name in dict.fromkeys(_split(style))],
        slide=slide, smooth=smooth, opacity=opacity, downsample=downsample, compress=gzip, overwrite=overwrite,
        origin=_one_of("--origin", origin, ORIGINS),
        scale=ScaleRequest(
            _one_of("--scale", scale, SCALES), vmin, vmax, colour_map=_one_of("--cmap", cmap, COLOUR_MAPS)
        ),
    )  # fmt: skip
    raise typer.Exit(render_command(results, request, scale_from or [], out))


@command(app, "tile")
def tile(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="SLIDE|DATASET...", help="Slides, or folders of measured sections.", show_default=False),
    ],
    model: ModelOption = DEFAULT_MODEL,
    out: Out = Path(),
    pitch: Pitch = None,
    layout: LayoutOption = "square",
    spots: SpotsFile = None,
    min_tissue: MinTissue = 0.25,
    mpp: MppOption = None,
    allow_upsampling: Upsampling = False,
    patches: Annotated[bool, typer.Option("--patches", help="Also write the patches of a slide's grid.")] = False,
    unlabelled: Annotated[
        int, typer.Option(min=0, help="Further patches of a data set, at random places of its tissue.")
    ] = 0,
    threads: Threads = None,
) -> None:
    """Show the grid that a prediction would use, or write a data set's patches and counts for training.

    Examples: stpredict tile slide.svs; stpredict tile her2st/ -o tiles
    """
    from stpredict.commands import tile_command
    from stpredict.engines import EngineRequest
    from stpredict.prediction import Request

    request = Request(
        pitch_um=pitch, layout=_layout(layout), spots_file=spots, min_tissue=min_tissue, mpp=mpp,
        allow_upsampling=allow_upsampling, engine=EngineRequest(threads=threads or usable_cores()),
    )  # fmt: skip
    raise typer.Exit(tile_command(inputs, model, request, out, patches, unlabelled))


@command(app, "train")
def train(
    dataset: Annotated[
        Path, typer.Argument(help="Folder of measured sections, or a .tiles.h5 file.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The model file to write, NAME.safetensors.", show_default=False)
    ],
    arch: Annotated[
        str, typer.Option(help="m2ort-small, -base or -large; with -cross as in the released code.")
    ] = "m2ort-small",
    objective: Annotated[
        str, typer.Option(help="residuals, nb, poisson, or mse on ln(1 + CPM) as in the papers.")
    ] = "residuals",
    folds: Annotated[
        str, typer.Option(help="Hold out each patient or each section in turn to test: patient, section or none.")
    ] = "patient",
    hold_out: Annotated[
        str, typer.Option(help="Further patients or sections to hold out in turn, separated by commas.")
    ] = "",
    genes_file: Annotated[
        Path | None, typer.Option(help="The genes to predict: .txt, .csv or .npy.", show_default="chosen by variance")
    ] = None,
    genes_required: Annotated[str, typer.Option(help="Genes that must be in the panel, separated by commas.")] = "",
    panel_size: Annotated[
        int | None, typer.Option(min=1, help="Draw this many of the variable genes.", show_default="all")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs on measured spots; validation chooses the best.")] = 8,
    unlabelled: Annotated[
        int, typer.Option(min=0, help="Unlabelled patches of tissue, on which ridge teaches.")
    ] = 5000,
    teach_patches: Annotated[
        int, typer.Option(min=0, help="How many of them to see in all, with repetition.")
    ] = 25_000,
    stain_jitter: Annotated[float, typer.Option(min=0, help="Spread of the random factors on the stains.")] = 0.1,
    batch_size: Annotated[int, typer.Option(min=1)] = 48,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate on measured spots.")] = 1e-4,
    teach_learning_rate: Annotated[float, typer.Option(help="Peak learning rate on unlabelled tissue.")] = 5e-4,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the model.", show_default="the sections'")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model's card.")] = "not stated",
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew.")] = False,
) -> None:
    """Train a model, test it on held-out tissue beside baselines, and write both into one file.

    Example: stpredict train her2st/ -o mine.safetensors
    """
    from stpredict.commands import train_command
    from stpredict.training import Settings

    settings = Settings(
        architecture=arch, objective=objective, epochs=epochs, teach_patches=teach_patches, batch_size=batch_size,
        learning_rate=learning_rate, teach_learning_rate=teach_learning_rate, stain_jitter=stain_jitter, seed=seed,
    )  # fmt: skip
    train_command(
        dataset, out, settings, genes_file=genes_file, genes_required=_split(genes_required), panel_size=panel_size,
        folds=folds, hold_out=_split(hold_out), unlabelled=unlabelled, mpp=mpp, licence=licence, device=device,
        threads=threads or usable_cores(), overwrite=overwrite,
    )  # fmt: skip


@command(app, "evaluate")
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|RESULT", help="A model, or a result of predict.", show_default=False)
    ],
    dataset: Annotated[
        Path, typer.Argument(help="Folder of measured sections, or a .tiles.h5 file.", show_default=False)
    ],
    out: Out = Path(),
    min_depth: Annotated[int, typer.Option(min=1, help="Leave out spots with fewer counts.")] = 500,
    allow_patient_leak: Annotated[
        bool, typer.Option("--allow-patient-leak", help="Score patients that the model was trained on, too.")
    ] = False,
    engine: Annotated[str, typer.Option(help="auto, openvino or eager.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a model or a result on measured sections, always beside baselines that never look at the image.

    Example: stpredict evaluate m2ort-small-her2st visium/
    """
    from stpredict.commands import evaluate_command
    from stpredict.engines import EngineRequest

    request = EngineRequest(engine, precision, device, threads=threads or usable_cores())
    evaluate_command(what, dataset, out, request, min_depth, allow_patient_leak, overwrite)


@command(models_app, "list")
def models_list() -> None:
    """List the installed models."""
    from stpredict.commands import list_command

    list_command()


@command(models_app, "show")
def models_show(
    model: Annotated[str, typer.Argument(help="Name of an installed model, or a model file.", show_default=False)],
) -> None:
    """Show a model's card: what it predicts, what it was trained on, and how well it did on held-out tissue."""
    from stpredict.cards import show_card
    from stpredict.weights import find_model, load_model

    print("\n".join(show_card(load_model(find_model(model)))))


@command(models_app, "import")
def models_import(
    checkpoint: Annotated[Path, typer.Argument(help="A published M2ORT checkpoint, .pth.", show_default=False)],
    genes: Annotated[Path, typer.Option(help="Its genes, in order: .npy, .txt or .csv.", show_default=False)],
    mpp: Annotated[
        float, typer.Option(help="Micrometres per pixel of the patches it was trained on.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The model file to write.", show_default="CHECKPOINT.safetensors")
    ] = None,
    spot_diameter: Annotated[float, typer.Option(help="um")] = 100.0,
    pitch: Annotated[float, typer.Option(help="Distance between the spots it was trained on, um.")] = 200.0,
    v_from_qkv2: Annotated[
        bool, typer.Option("--v-from-qkv2", help="For checkpoints of the oldest released code.")
    ] = False,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of an attention head.")] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Bring in a published checkpoint; nothing in it is executed."""
    from stpredict.checkpoints import import_checkpoint
    from stpredict.data.panel import read_gene_list

    target = out or Path(checkpoint.name).with_suffix(".safetensors")
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: exists; --overwrite replaces it.")
    import_checkpoint(
        checkpoint,
        read_gene_list(genes),
        mpp,
        spot_diameter,
        pitch,
        target,
        "qkv2" if v_from_qkv2 else "qkv3",
        head_dim,
    )
    print(target)


@command(app, "doctor")
def doctor() -> None:
    """Say what this machine can do, and why not what it can't."""
    from stpredict.doctor import examine

    for line in examine():
        print(line, flush=True)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _genes(text: str | None) -> list[str]:
    genes = _split(text or "")
    if text is not None and not genes:
        raise UsageError("--genes names no gene.")
    return genes


def _layout(name: str) -> Literal["square", "hex"]:
    return _one_of("--layout", name, ("square", "hex"))


def _one_of(option: str, name: str, choices: Sequence[Choice]) -> Choice:
    for choice in choices:
        if name == choice:
            return choice
    raise UsageError(f"{option} {name}: choose from {', '.join(choices)}.")
