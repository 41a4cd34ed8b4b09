"""Time and memory of the pictures: writes rendering.md beside this script.

Usage: python tests/benchmarks/rendering.py [--scratch DIR]    (about 20 minutes and 4 GB of disk)

Heatmaps of 40,000 x 30,000 pixels take turns with libvips writing a blank picture of that size with the same tiles,
compression and levels. Peak memory is that of a process of its own which draws one picture of 100,000 x 80,000 pixels
at a pitch of 56 um, imports included; the overlay's slide repeats the tiles of the example slide.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rendering")]
ROUNDS = 3
LARGE = (100_000, 80_000)
MIB = 1 << 20


def blank(path: Path, size: tuple[int, int]) -> None:
    import pyvips

    pyvips.Image.black(*size, bands=3).copy(interpretation="srgb").tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, bigtiff=True, resunit="cm",
        compression="deflate", level=1, predictor="none",
    )  # fmt: skip


def random_result(folder: Path, size: tuple[int, int], pitch_px: float, n_genes: int, layout: str = "square"):
    """Random values at every spot of a slide: the least compressible map."""
    from results_to_draw import made_up

    from stpredict.slides.lattice import lattice
    from stpredict.slides.slide import Bounds, Mpp

    mpp = Mpp(0.25, 0.25)
    spots = lattice(Bounds(0, 0, *size), mpp, pitch_px * 0.25, layout)
    values = np.random.default_rng(0).normal(5, 1, (len(spots), n_genes))
    return made_up(folder / f"s{size[0]}-{pitch_px:g}-{layout}.h5ad", spots, values, mpp, size)


def draw(result_path: Path, style: str, genes: list[str], **request: object) -> None:
    from stpredict.rendering.render import render
    from stpredict.rendering.styles import RenderRequest
    from stpredict.result.file import read_result

    with tempfile.TemporaryDirectory(dir=result_path.parent) as out:
        list(render(read_result(result_path), RenderRequest(styles=[style], genes=genes, **request), Path(out)))


def measured(function, *arguments, **keywords) -> tuple[float, float]:
    """Seconds and peak MiB of a call in a fresh process, imports included."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, function, arguments, keywords))
    process.start()
    send.close()  # or a child that dies would be waited for
    seconds, peak = receive.recv()
    process.join()
    return seconds, peak


def _measure(send, function, arguments, keywords) -> None:
    began = time.perf_counter()
    function(*arguments, **keywords)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
    send.send((seconds, int(status.split("VmHWM:")[1].split()[0]) * 1024 / MIB))


def large_slide(path: Path, size: tuple[int, int]) -> None:
    """A pyramidal TIFF whose JPEG tiles are those of the example slide, again and again."""
    import io

    import openslide
    import tifffile

    with openslide.OpenSlide(TESTS / "data" / "CMU-1-Small-Region.svs") as slide:
        region = slide.read_region((0, 0), 0, (2048, 2816)).convert("RGB")
    tiles = []
    for y in range(0, 2816, 256):
        for x in range(0, 2048, 256):
            stream = io.BytesIO()
            region.crop((x, y, x + 256, y + 256)).save(stream, "JPEG", quality=80)
            tiles.append(stream.getvalue())

    def repeated(width: int, height: int):
        for y in range((height + 255) // 256):
            for x in range((width + 255) // 256):
                yield tiles[(y % 11) * 8 + x % 8]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (0, 2, 4):
            width, height = size[0] >> level, size[1] >> level
            tiff.write(
                repeated(width, height), shape=(height, width, 3), dtype=np.uint8, tile=(256, 256),
                compression="jpeg", photometric="ycbcr", subsampling=(2, 2), subfiletype=1 if level else 0,
                resolution=(40_000 >> level, 40_000 >> level), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def times(scratch: Path) -> list[str]:
    size = (40_000, 30_000)
    cases = {
        "square, 100 px": (random_result(scratch, size, 100.0, 1).path, {}, 1.3),
        "square, 144.93 px": (random_result(scratch, size, 144.93, 1).path, {}, 2.0),
        "square, 144.93 px, --smooth": (random_result(scratch, size, 144.93, 1).path, {"smooth": True}, None),
        "hexagonal, 144.93 px": (random_result(scratch, size, 144.93, 1, "hex").path, {}, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("blank", *cases)}
    for _ in range(ROUNDS):
        seconds["blank"].append(measured(blank, scratch / "blank.tif", size)[0])
        for name, (path, request, _) in cases.items():
            seconds[name].append(measured(draw, path, "heatmap", ["G0"], **request)[0])
    lines = [
        "| heatmap, 40,000 x 30,000 px | wall time, relative to libvips writing a blank picture | at most |",
        "|---|---|---|",
    ]
    for name, (_, _, bound) in cases.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["blank"], strict=True))
        lines.append(f"| {name} | {ratio:.2f} | {bound or ''} |")
    return lines


def memory(scratch: Path) -> Iterator[str]:
    from stpredict.result.file import read_result

    result = random_result(scratch, LARGE, 224.0, 16)
    slide_path = scratch / "large.tif"
    large_slide(slide_path, LARGE)
    rename_slide(result.path, slide_path)
    spots = len(read_result(result.path).spots)
    three, sixteen = [f"G{i}" for i in range(3)], [f"G{i}" for i in range(16)]
    cases = (
        ("heatmap", "heatmap", three[:1], 300), ("overlay", "overlay", three[:1], 500),
        ("channels, 3 genes", "channels", three, 500),
        ("spots, 3 genes", "spots", three, None), ("csv, 3 genes", "csv", three, None),
        ("pca, 16 genes", "pca", sixteen, None), ("report, 16 genes", "report", sixteen, None),
    )  # fmt: skip
    yield from (
        f"| picture, 100,000 x 80,000 px, {spots:,} spots | peak memory, MiB | at most | minutes |",
        "|---|---|---|---|",
    )
    for name, style, genes, bound in cases:
        seconds, peak = measured(draw, result.path, style, genes)
        yield f"| {name} | {peak:.0f} | {bound or ''} | {seconds / 60:.1f} |"


def rename_slide(result_path: Path, slide_path: Path) -> None:
    """Make the result name a slide that exists."""
    import json

    import h5py

    from stpredict.slides.slide import open_slide

    with h5py.File(result_path, "r+") as file, open_slide(slide_path) as slide:
        provenance = json.loads(file["uns/stpredict"][()])
        provenance["slide"] |= {"path": slide_path.name, "fingerprint": slide.fingerprint()}
        attributes = dict(file["uns/stpredict"].attrs)
        del file["uns/stpredict"]
        file["uns/stpredict"] = json.dumps(provenance)
        file["uns/stpredict"].attrs.update(attributes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="folder for large files")
    lines = []
    with tempfile.TemporaryDirectory(dir=parser.parse_args().scratch) as folder:
        for part in (times, memory):
            for line in (*part(Path(folder)), ""):
                lines.append(line)
                write(lines)


def write(lines: list[str]) -> None:
    intro = (
        f"Written by `python tests/benchmarks/rendering.py` on {platform.machine()}, {multiprocessing.cpu_count()} "
        f"cores. Times are medians of {ROUNDS} rounds in which the rows take turns; every call is a process of its "
        "own, imports included."
    )
    (Path(__file__).parent / "rendering.md").write_text("\n".join(["# Rendering", "", intro, "", *lines]))


if __name__ == "__main__":
    main()
