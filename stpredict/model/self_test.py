"""A model's output for fixed images when it was made. Whoever runs the model can check that it still gives it.

It reveals a forgotten normalisation, an encoder that is read otherwise, and a fault of an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpredict.arrays import Float32, UInt8
from stpredict.errors import ModelFileError, first_line
from stpredict.model.file import PUBLISHED_IMAGE, SELF_TEST, Model

if TYPE_CHECKING:
    from torch import nn

#: Eosin, nuclei and glass of the fixed image, RGB.
EOSIN, NUCLEUS, GLASS = (226, 158, 196), (104, 66, 148), (243, 241, 244)
#: Nuclei along a side of the image; and the image's side over the radius of a nucleus.
NUCLEI, RADIUS = 8, 24
#: How far an imported model's outputs may lie from the publisher's, relative to the difference of that image and glass.
MAX_FROM_PUBLISHED = 0.01


def fixed_images(patch_px: int) -> UInt8:
    """An image like tissue, and glass: 2 x P x P x 3. Computed in whole numbers, so that it is the same everywhere."""
    y, x = np.mgrid[:patch_px, :patch_px].astype(np.int64)
    image = np.empty((patch_px, patch_px, 3), np.int64)
    image[:] = EOSIN
    image -= ((x * 73 + y * 151 + (x * y) % 97) % 23)[:, :, None] * np.array((1, 2, 1))
    state = 1
    for _ in range(NUCLEI * NUCLEI):
        state = (state * 1103515245 + 12345) % 2**31
        column, row = state // 65536 % patch_px, state // 16 % patch_px
        inside = (x - column) ** 2 + (y - row) ** 2 < (patch_px // RADIUS + state // 4096 % 3) ** 2
        image[inside] = np.array(NUCLEUS) + (state // 1024 % 29)
    image[x + y < patch_px // 3] = GLASS
    return np.stack([image.clip(0, 255), np.full_like(image, 255)]).astype(np.uint8)


def images_of(model: Model) -> UInt8:
    """The images whose outputs a model stores: the fixed ones, and its publisher's if it has one."""
    images, published = fixed_images(model.card["patch_px"]), model.tensors.get(PUBLISHED_IMAGE)
    return images if published is None else np.concatenate([images, published[None]])


def self_test_outputs(network: nn.Module, images: UInt8, n_genes: int) -> Float32:
    """The output for images, n x genes, of a network that is ready to predict.

    Raises ModelFileError if the output is no numbers.
    """
    import torch  # slow to import, and not needed for comparing

    device = next((tensor.device for tensor in [*network.parameters(), *network.buffers()]), torch.device("cpu"))
    with torch.inference_mode():
        found: Float32 = network(torch.from_numpy(images).to(device))[:, :n_genes].float().cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelFileError("the model gives no numbers (NaN or infinite) of its first image; its files are damaged.")
    return found


def self_test_of(model: Model) -> Float32 | None:
    """A model's stored output for its images, n x genes; None if its file has none."""
    return model.tensors.get(SELF_TEST)


def deviation(found: Float32, stored: Float32) -> float:
    """Root mean square of outputs less stored outputs, n x genes, relative to that of tissue less glass.

    Outputs that are not stored, such as most of a publisher's, are NaN.
    """
    spread = float(np.sqrt(np.mean((stored[0].astype(np.float64) - stored[1]) ** 2)))
    far = float(np.sqrt(np.mean((found.astype(np.float64) - stored)[np.isfinite(stored)] ** 2)))
    return far / max(spread, 1e-6) if np.isfinite(far) else float("inf")


@dataclass(frozen=True)
class Expected:
    """A publisher's image, P x P x 3, and the model's first outputs for it, in the genes' order."""

    image: UInt8
    output: Float32


def read_expected(path: Path, patch_px: int, n_genes: int) -> Expected:
    """An `.npz` of `image`, uint8, and `output`. Raises ModelFileError for any other file, or other sizes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            image, output = file["image"], np.asarray(file["output"], np.float32).ravel()
    except Exception as error:  # numpy stumbles over a damaged file in many ways
        raise ModelFileError(f"{path}: cannot be read as arrays `image` and `output` ({first_line(error)}).") from error
    if image.shape != (patch_px, patch_px, 3) or image.dtype != np.uint8:
        raise ModelFileError(f"{path.name}: its image is {image.dtype} {image.shape}, not uint8 of {patch_px} px, RGB.")
    if not 0 < len(output) <= n_genes or not np.isfinite(output).all():
        raise ModelFileError(f"{path.name}: has {len(output)} outputs of {n_genes} genes, or some are no numbers.")
    return Expected(image, output)


def demand_expected(found: Float32, expected: Expected, glass: Float32) -> Float32:
    """The publisher's outputs to store, NaN for those not published, checked against outputs `found` and for `glass`.

    Raises ModelFileError if the model gives other outputs.
    """
    n = len(expected.output)
    spread = float(np.sqrt(np.mean((expected.output - glass[:n]) ** 2)))
    far = float(np.sqrt(np.mean((found[:n] - expected.output) ** 2))) / max(spread, 1e-6)
    if not far <= MAX_FROM_PUBLISHED:
        shown = " ".join(f"{x:.4g}" for x in found[: min(n, 5)])
        raise ModelFileError(
            f"--expect: of the publisher's image the model gives {shown} ..., not "
            f"{' '.join(f'{x:.4g}' for x in expected.output[:5])} ...; mean, deviation, stain, um per pixel or "
            "the order of genes is another than theirs."
        )
    stored = np.full(len(found), np.nan, np.float32)
    stored[:n] = expected.output
    return stored


def self_test_tensors(outputs: Float32, published: UInt8 | None = None) -> Mapping[str, Float32 | UInt8]:
    """The tensors of the self-test in a model file."""
    return {SELF_TEST: outputs} if published is None else {SELF_TEST: outputs, PUBLISHED_IMAGE: published}
