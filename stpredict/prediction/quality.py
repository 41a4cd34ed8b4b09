"""Reasons not to believe a spot: colours unlike the training data, blur, pen, folds, little stain.

Patches are measured while the engine infers. Flags are set once all patches of a slide are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float, Float32, UInt8
from stpredict.model.reference import Reference, colour_features, colour_planes, optical_density, unusual
from stpredict.result.file import UNUSUAL, flagged

#: The measures of each patch, in this order.
MEASURES = (UNUSUAL, "sharpness", "ink", "density", "stain")
#: A flag is reported only if at least this share of spots has it, because some spots are flagged wrongly.
FEW = 0.05
WORDS = {
    UNUSUAL: ("looks unlike the training data", "look unlike the training data"),
    "blurred": ("is blurred", "are blurred"),
    "pen": ("has pen on it", "have pen on them"),
    "fold": ("lies in a fold", "lie in folds"),
    "pale": ("is pale", "are pale"),
}
#: Step between the pixels that give colours, in both directions, and between the lines that give sharpness.
STEP = 4
#: Patches to measure at a time, so that their pixels fit into a processor's cache.
CHUNK = 16
#: Above this optical density, a scanner's channels do not distinguish colours.
MOST_DENSITY = 2.0


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the flags. tests/benchmarks/quality.md says what they find and how often they are wrong."""

    #: Blurred: the mean squared difference of neighbouring pixels, relative to that of pixels four apart, is below
    #: this. A relative measure also suits pale tissue. Smooth pictures have 1/16, noise 1, sharp H&E 0.10 to 0.26.
    sharpness_below: float = 0.1
    #: Pen: at least this share of pixels has colours that haematoxylin and eosin do not have. Strokes are wider than
    #: patches; dense bluish nuclei reach 0.17.
    ink_from: float = 0.2
    #: Blue or green ink: red is absorbed more than green by this optical density.
    ink_red_over_green: float = 0.15
    #: Black ink: all channels absorb this much, the weakest at least this share of the strongest. In nuclei, blue has a
    #: share of 0.4. Eosin, also in erythrocytes, hardly absorbs red. Nor does red ink, so red ink is not looked for.
    ink_black: float = 0.6
    ink_black_share: float = 0.7
    #: Fold: half the pixels absorb at least this much blue (dense nuclei absorb little, two layers twice as much),
    fold_density_from: float = 0.25
    #: and so many times as much as in the slide's median spot, over spots that are
    fold_times_slide: float = 1.6
    #: not mostly glass. On glass, half the pixels absorb less blue than this.
    glass_below: float = 0.05
    #: Pale: nine tenths of the pixels absorb less green than this. Both stains absorb green most.
    stain_below: float = 0.2


THRESHOLDS = Thresholds()


def measure_patches(patches: UInt8, reference: Reference | None) -> Float32:
    """MEASURES of patches (n x P x P x 3): n x 5. `unusual` is NaN without a reference.

    The measures of a patch do not depend on the others.
    """
    chunks = (patches[start : start + CHUNK] for start in range(0, len(patches), CHUNK))
    return np.concatenate([_measure(chunk, reference) for chunk in chunks]).astype(np.float32)


def unusual_share(measures: Float32) -> float:
    """Share of patches that are unusual; 0 without a reference."""
    return float((measures[:, 0] > 1).mean())


def typical_density(measures: Float32) -> float:
    """The median `density` of spots that are not mostly glass, to compare folds with; infinite if there are none."""
    density = measures[:, MEASURES.index("density")]
    tissue = density[density >= THRESHOLDS.glass_below]
    return float(np.median(tissue)) if len(tissue) else np.inf


def flag_spots(measures: Float32, typical: float) -> dict[str, Bool]:
    """The flags of spots on a slide with this typical density."""
    _, sharpness, ink, density, stain = measures.T
    pen = ink >= THRESHOLDS.ink_from
    dense = density >= max(THRESHOLDS.fold_density_from, THRESHOLDS.fold_times_slide * typical)
    return {
        "blurred": sharpness < THRESHOLDS.sharpness_below,
        "pen": pen,
        "fold": dense & ~pen,
        "pale": stain < THRESHOLDS.stain_below,
    }


@dataclass(frozen=True)
class Quality:
    """A result's quality: columns with a value per spot, the number of spots with each flag, and its account."""

    columns: dict[str, Float32 | Bool]
    counts: dict[str, int]
    account: dict[str, Any]


def judge_spots(measures: Float32) -> Quality:
    """The flags of all spots of a slide. `unusual` is left out where the model has no reference."""
    distance, typical = measures[:, 0], typical_density(measures)
    known = {} if np.isnan(distance).all() else {UNUSUAL: distance}
    columns: dict[str, Float32 | Bool] = {**known, **flag_spots(measures, typical)}
    counts = {name: int(spots.sum()) for name, spots in flagged(columns).items()}
    described = {
        "spots": counts,
        "thresholds": {"unusual_above": 1.0, **asdict(THRESHOLDS)},
        "typical_density": round(typical, 4) if np.isfinite(typical) else None,
    }
    return Quality(columns, counts, {"unusual_patches": round(unusual_share(measures), 3), "quality": described})


def flags_in_words(counts: Mapping[str, int], n_spots: int, but: str | None = None) -> str:
    """The flags, except `but`, that more than a few spots have: "120 are blurred, 30 have pen on them"."""
    told = (name for name, count in counts.items() if count > FEW * n_spots and name != but)
    return ", ".join(f"{counts[name]:,} {WORDS[name][counts[name] > 1]}" for name in told)


def _measure(patches: UInt8, reference: Reference | None) -> Float:
    rgb = np.moveaxis(patches[:, ::STEP, ::STEP], 3, 1).reshape(len(patches), 3, -1)
    density = optical_density(rgb)
    planes = np.sort(colour_planes(rgb, density), axis=2)
    distance = unusual(colour_features(planes), reference) if reference else np.full(len(patches), np.nan)
    n_pixels = rgb.shape[2]
    green, blue = (
        optical_density(planes[:, channel, place].astype(np.uint8))
        for channel, place in ((1, n_pixels // 10), (2, n_pixels // 2))
    )
    return np.column_stack([distance, _sharpness(patches[..., 1]), _ink(density), blue, green])


def _sharpness(green: UInt8) -> Float32:
    """Mean squared difference of pixels side by side, relative to that of pixels four apart."""
    along, down = green[:, ::STEP].astype(np.float32), green[:, :, ::STEP].astype(np.float32)
    near, far = (
        _mean_square(along[:, :, lag:] - along[:, :, :-lag]) + _mean_square(down[:, lag:] - down[:, :-lag])
        for lag in (1, 4)
    )
    sharpness: Float32 = (near + 0.01) / (far + 0.01)  # a blank patch is not blurred
    return sharpness


def _mean_square(values: Float32) -> Float32:
    mean: Float32 = np.square(values).reshape(len(values), -1).mean(axis=1)
    return mean


def _ink(density: Float32) -> Float:
    """Share of pixels with the colours of blue, green and black ink, which haematoxylin and eosin do not have."""
    red, green, blue = np.moveaxis(np.minimum(density, MOST_DENSITY), 1, 0)
    coloured = red - green > THRESHOLDS.ink_red_over_green
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    black = (least > THRESHOLDS.ink_black) & (least > THRESHOLDS.ink_black_share * most)
    share: Float = (coloured | black).mean(axis=1)
    return share
