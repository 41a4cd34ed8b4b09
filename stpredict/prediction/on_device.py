"""The measures of `quality` and the turns of `symmetry` in torch, for patches that lie on a GPU.

The arithmetic and precision are the same, so that results agree within rounding. Tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from stpredict.model.reference import BLACK, Reference, optical_density
from stpredict.prediction.quality import MOST_DENSITY, STEP, THRESHOLDS
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.statistics.colour_texture import HED_FROM_RGB, PERCENTILES

Run = Callable[[Tensor], Tensor]


def answer_beside(run: Run, reference: Reference | None, tta: bool) -> Run:
    """A network's expression, or with `tta` its mean over all turns and its spread, then the patches' measures.

    Takes uint8 patches, B x P x P x 3 or B x V x P x P x 3, and gives one float32 array, the measures last.
    """
    measure = measures_on_device(reference)

    def answer(patches: Tensor) -> Tensor:
        measures = measure(patches if patches.ndim == 4 else patches[:, 0])
        if not tta:
            return torch.cat([run(patches), measures], dim=1)
        turns = torch.stack([run(turned(patches, code)) for code in range(SYMMETRIES)])
        return torch.cat([turns.mean(dim=0), turns.std(dim=0, correction=0), measures], dim=1)

    return answer


def turned(patches: Tensor, code: int) -> Tensor:
    """As `symmetry.turn`."""
    mirrored = patches.flip(-2) if code >= 4 else patches
    return torch.rot90(mirrored, code % 4, (-3, -2)).contiguous()


def measures_on_device(reference: Reference | None) -> Run:
    """A function that measures patches (n x P x P x 3) as `quality.measure_patches` does, with tables on the device."""

    @cache  # nothing can be uploaded while a CUDA graph is captured
    def upload(device: torch.device) -> tuple[Tensor, ...]:
        table = optical_density(np.arange(256, dtype=np.uint8))
        known = (reference.mean, reference.whitening) if reference else ()
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (table, *known))

    def measure(patches: Tensor) -> Tensor:
        table, *known = upload(patches.device)
        rgb = patches[:, ::STEP, ::STEP].permute(0, 3, 1, 2).flatten(2)
        density = table[rgb.int()]
        planes = _colour_planes(rgb, density).sort(dim=2).values
        n_pixels = rgb.shape[2]
        green, blue = (table[planes[:, channel, n_pixels // part].int()] for channel, part in ((1, 10), (2, 2)))
        if known:
            away = _colour_features(planes).double() - known[0]
            distance = (away[:, :, None] * known[1]).sum(dim=1).square().sum(dim=1).sqrt().float()
        else:
            distance = torch.full_like(green, torch.nan)
        return torch.stack([distance, _sharpness(patches[..., 1]), _ink(density), blue, green], dim=1)

    return measure


def _colour_planes(rgb: Tensor, density: Tensor) -> Tensor:
    stains = [
        (density[:, 0] * red + density[:, 1] * green + density[:, 2] * blue).clamp(min=0)
        for red, green, blue in (HED_FROM_RGB / BLACK).astype(np.float32).T.tolist()
    ]
    return torch.cat([rgb.float(), torch.stack(stains, dim=1)], dim=1)


def _colour_features(planes: Tensor) -> Tensor:
    """As `model.reference.colour_features`, which also takes percentiles from sorted planes."""
    last = planes.shape[2] - 1
    mean = planes.mean(dim=2)
    spread = (planes - mean[:, :, None]).square().mean(dim=2).sqrt()
    percentiles = []
    for percent in PERCENTILES:
        position = percent / 100 * last
        below = int(position)
        low, high = planes[:, :, below], planes[:, :, min(below + 1, last)]
        percentiles.append(low + (high - low) * (position - below))
    return torch.cat([mean, spread, *percentiles], dim=1)


def _sharpness(green: Tensor) -> Tensor:
    along, down = green[:, ::STEP].float(), green[:, :, ::STEP].float()
    near, far = (
        _mean_square(along[:, :, lag:] - along[:, :, :-lag]) + _mean_square(down[:, lag:] - down[:, :-lag])
        for lag in (1, 4)
    )
    return (near + 0.01) / (far + 0.01)


def _mean_square(values: Tensor) -> Tensor:
    return values.square().flatten(1).mean(dim=1)


def _ink(density: Tensor) -> Tensor:
    red, green, blue = density.clamp(max=MOST_DENSITY).unbind(dim=1)
    coloured = red - green > THRESHOLDS.ink_red_over_green
    least, most = torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
    black = (least > THRESHOLDS.ink_black) & (least > THRESHOLDS.ink_black_share * most)
    return (coloured | black).float().mean(dim=1)
