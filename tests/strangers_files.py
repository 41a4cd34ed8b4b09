"""Files as strangers send them: originals of the kinds the program reads, damaged from a seed, used as it would."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile
from conftest import SLIDE, make_model
from dicom_slide import write_dicom_slide
from PIL import Image
from results_to_draw import made_up
from strangers_tables import TABLES, make_tables

from stpredict.errors import MissingMppError, ResultError
from stpredict.model.file import load_model
from stpredict.model.published import read_checkpoint
from stpredict.prediction.quality import MEASURES
from stpredict.prediction.shards import Shards
from stpredict.rendering.colour import ScaleRequest, colour_scale
from stpredict.result.file import read_result
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.lattice import given_spots, lattice
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.regions import read_regions
from stpredict.slides.slide import Bounds, Mpp, open_slide, resolve_mpp

SIDE_PX = 768
MPP = Mpp(0.5, 0.5)
THREADS = 2
N_SHARD_SPOTS = 50
#: Bytes at either end of a file, where most formats keep what they say of themselves.
HEAD_BYTES = 4096
MUTATIONS = ("truncated", "bytes flipped", "span zeroed", "header spliced")


def mutate(content: bytes, donor: bytes, mutation: str, seed: int) -> bytes:
    """`content` damaged in one of the ways of MUTATIONS; `donor` is a file of another kind."""
    rng = np.random.default_rng([zlib.crc32(mutation.encode()), len(content), seed])
    size = len(content)
    damaged = bytearray(content)
    if mutation == "truncated":
        return content[: rng.integers(size)]
    if mutation == "bytes flipped":
        low, high = [(0, size), (0, min(size, HEAD_BYTES)), (max(0, size - HEAD_BYTES), size)][rng.integers(3)]
        for position in rng.integers(low, high, 2 ** rng.integers(7)).tolist():
            damaged[position] ^= int(rng.integers(1, 256))
    elif mutation == "span zeroed":
        length = _log_uniform(rng, size // 4)
        start = int(rng.integers(size - length))
        damaged[start : start + length] = bytes(length)
    else:
        length = _log_uniform(rng, size)
        source = donor if rng.integers(2) else content[rng.integers(size) :]
        damaged[: min(length, len(source))] = source[:length]
    return bytes(damaged)


def _log_uniform(rng: np.random.Generator, high: int) -> int:
    return int(2 ** rng.uniform(0, np.log2(high)))


def make_originals(folder: Path) -> dict[str, Path]:
    """One whole file of each kind."""
    with openslide.OpenSlide(SLIDE) as slide:
        region = np.asarray(slide.read_region((300, 300), 0, (SIDE_PX, SIDE_PX)).convert("RGB"))
    spots = lattice(Bounds(0, 0, 600, 400), MPP, 40.0)
    made_up(folder / "result.h5ad", spots, np.random.default_rng(0).normal(5, 1, (len(spots), 3)))
    make_model(folder / "model.safetensors")
    _jpeg_pyramid(folder / "slide.tif", region)
    write_dicom_slide(folder / "slide.dcm", region, MPP)
    Image.fromarray(region).save(folder / "slide.jpg", quality=85, dpi=(50_800, 50_800))
    Image.fromarray(region).save(folder / "slide.png", dpi=(50_800, 50_800))
    shards = Shards(folder, np.arange(N_SHARD_SPOTS), 3, {}, "", "run")
    shards.write(0, np.random.default_rng(0).random((N_SHARD_SPOTS, 3 + len(MEASURES)), np.float32))
    (folder / "spots.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in spots.centres.tolist()))
    (folder / "regions.geojson").write_text(json.dumps(REGIONS))
    return {
        "SVS": SLIDE,
        "TIFF, JPEG tiles": folder / "slide.tif",
        "DICOM": folder / "slide.dcm",
        "JPEG": folder / "slide.jpg",
        "PNG": folder / "slide.png",
        "result": folder / "result.h5ad",
        "model": folder / "model.safetensors",
        "checkpoint": SLIDE.with_name("m2ort_released_tiny.pth"),
        "spots CSV": folder / "spots.csv",
        "regions": folder / "regions.geojson",
        "shard": folder / "000000-run.npy",
        **make_tables(folder, folder / "slide.png"),
    }


REGIONS = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, 0], [x + 200, 0], [x + 200, 400], [x, 400], [x, 0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
        }
        for x, name in ((0, "Tumor"), (200, "Stroma"), (400, "Tumor"))
    ],
}


def _jpeg_pyramid(path: Path, region: np.ndarray) -> None:
    """A generic tiled TIFF of three levels, its directories among the tiles."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            tiff.write(
                np.ascontiguousarray(region[:: 2**level, :: 2**level]), tile=(256, 256), compression="jpeg",
                photometric="rgb", metadata=None, subfiletype=1 if level else 0, resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
            )  # fmt: skip


def use_slide(path: Path) -> str:
    """Everything that `predict` reads of a slide; a digest of its pixels, and "grey" if some are a decoder's filling.

    Goes on as with --mpp where a slide lost its resolution.
    """
    with open_slide(path) as slide:
        try:
            mpp = resolve_mpp(slide)
        except MissingMppError:
            mpp = resolve_mpp(slide, MPP.x)
        slide.fingerprint()
        raster = make_raster(slide, mpp, 0.69, allow_upsampling=True)
        tissue, spots, _ = choose_spots(slide, mpp, GridRequest(100.0, 100.0, min_tissue=0.0), THREADS)
        pixels, grey = hashlib.sha256(str(slide.dimensions).encode()), _has_filling(tissue.overview)
        centres = spots.centres[:: max(1, len(spots) // 24)]
        for _, patches in read_patches(raster, centres, 224, THREADS):
            for patch in patches:
                pixels.update(patch.tobytes())
                grey = grey or _has_filling(patch)
        return "grey" if grey else pixels.hexdigest()


def _has_filling(pixels: np.ndarray) -> bool:
    """Whether there is more of the grey that JPEG decoders put where data are missing than tissue holds by chance."""
    return bool((pixels == 128).all(axis=2).sum() > 256)


def use_result(path: Path) -> str:
    """Everything that `render` and `summary` read of a result."""
    result = read_result(path)
    digest = hashlib.sha256(result.digest_of(range(len(result.genes))).encode())
    for index, gene in enumerate(result.genes):
        scale = colour_scale(result, index, ScaleRequest("slide"))
        digest.update(f"{gene} {scale}".encode())
        digest.update(result.expression(gene.name).tobytes())
    for block in result.blocks(range(len(result.genes))):
        digest.update(block.tobytes())
    return digest.hexdigest()


def use_model(path: Path) -> str:
    return load_model(path).sha256


def use_checkpoint(path: Path) -> str:
    return hashlib.sha256(str(read_checkpoint(path, head_dim=16).state_dict()).encode()).hexdigest()


def use_shard(path: Path) -> str:
    """A shard is no stranger's, but a killed machine may leave anything of it: what is not whole is made again."""
    values = Shards(path.parent, np.arange(N_SHARD_SPOTS), 3, {}, "", "run").read(0)
    if values is None:
        raise ResultError("made again")
    return hashlib.sha256(values.tobytes()).hexdigest()


def use_spots(path: Path) -> str:
    return hashlib.sha256(given_spots(path, (600, 400), 40.0).centres.tobytes()).hexdigest()


def use_regions(path: Path) -> str:
    centres = np.mgrid[0:600:20, 0:400:20].reshape(2, -1).T.astype(float)
    inside = {name: shape.contains(centres).tobytes() for name, shape in read_regions(path).items()}
    return hashlib.sha256(repr(sorted(inside.items())).encode()).hexdigest()


USES: dict[str, Callable[[Path], str]] = {
    "SVS": use_slide,
    "TIFF, JPEG tiles": use_slide,
    "DICOM": use_slide,
    "JPEG": use_slide,
    "PNG": use_slide,
    "result": use_result,
    "model": use_model,
    "checkpoint": use_checkpoint,
    "spots CSV": use_spots,
    "regions": use_regions,
    "shard": use_shard,
    **{kind: use for kind, (_, use) in TABLES.items()},
}
