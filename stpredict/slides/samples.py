"""The meaning of the samples of an image's pixels, and their conversion to RGB, which all readers share.

Ordinary images, RGB or grey of 8 bits, need none of this. Colour profiles of RGB images are ignored, as by OpenSlide:
the models were trained on such pixels. CMYK has no defined colours without a profile. An embedded profile is applied;
without one, R is (255 - C)(255 - K) / 255, as in libtiff and Pillow.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from stpredict.arrays import UInt8

Colour = Literal["grey", "inverted grey", "rgb", "ycbcr", "palette", "cmyk", "lab"]
#: Number of samples per pixel of a colour model.
COUNT = {"grey": 1, "inverted grey": 1, "rgb": 3, "ycbcr": 3, "palette": 1, "cmyk": 4, "lab": 3}
#: Depths, in bits, that cameras and scanners have.
DEPTHS = (8, 10, 12, 14, 16, 24, 32)
#: Samples of so many bits may hold values of fewer bits.
WHOLE = (16, 32, 64)
#: Resampling may put floating-point values outside their range, by at most this share of it.
OVERSHOOT = 0.02


class SamplesError(Exception):
    """Samples whose colours cannot be known. The message is half a sentence."""


@dataclass(frozen=True)
class Samples:
    """The colour model, the values of full intensity and full opacity, and which sample is the opacity.

    `palette` is n x 3, `profile` an ICC profile; `premultiplied` colours are already weighted by the opacity.
    """

    colour: Colour
    top: float = 255
    alpha: int | None = None
    alpha_top: float = 255
    premultiplied: bool = False
    palette: UInt8 | None = None
    profile: bytes | None = None


def full_value(dtype: np.dtype[Any], bits: int, low: float, high: float, stated: float | None = None) -> float:
    """The value of full intensity, for samples that reach from `low` to `high`.

    That is the `stated` value, if no sample exceeds it, else the highest value of the least depth that holds all
    samples. Samples whose bits are not in WHOLE fill their depth. Raises SamplesError if values are no intensities.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SamplesError("some of its values are no numbers")
    if dtype.kind == "f":
        tops = [1.0, *(2.0**depth - 1 for depth in DEPTHS if depth <= 16)]
        top = next((top for top in tops if high <= top * (1 + OVERSHOOT)), None)
        if top is None or low < -OVERSHOOT * top:
            raise SamplesError(
                f"its floating-point values reach from {low:.4g} to {high:.4g}, which are no intensities"
            )
        return top
    if low < 0:
        raise SamplesError(f"its values reach down to {low:,.0f}, which is no intensity")
    most = 2.0 ** (bits - (dtype.kind == "i")) - 1
    if bits not in WHOLE:
        return most
    if stated and high <= stated < most:
        return stated
    return min(next((2.0**depth - 1 for depth in DEPTHS if high < 2.0**depth), most), most)


def note_of_range(dtype: np.dtype[Any], bits: int, high: float, top: float) -> str | None:
    """A sentence on the value that was taken for full intensity, if others were possible."""
    if dtype.kind == "f":
        return f"its floating-point values reach {high:.4g}; {top:g} is taken for full intensity"
    if bits in WHOLE and top != 2.0**bits - 1:
        return f"its {bits}-bit values reach only {high:,.0f}; {top:,.0f} is taken for full intensity"
    return None


def as_rgb(raw: npt.NDArray[Any], samples: Samples) -> UInt8:
    """RGB on white, H x W x 3, from samples, H x W x S or H x W."""
    raw = np.atleast_3d(raw)
    colours = raw[..., : COUNT[samples.colour]]
    if samples.colour == "palette":
        assert samples.palette is not None
        rgb = samples.palette[np.minimum(colours[..., 0], len(samples.palette) - 1)]
    else:
        rgb = _coloured(_as_bytes(colours, samples.top), samples)
    if samples.alpha is None:
        return np.ascontiguousarray(rgb)
    alpha = _as_bytes(raw[..., samples.alpha, None], samples.alpha_top).astype(np.uint16)
    if samples.premultiplied:
        return np.asarray(np.minimum(rgb + (255 - alpha), 255), dtype=np.uint8)
    return np.asarray((rgb * alpha + 255 * (255 - alpha) + 127) // 255, dtype=np.uint8)


def _as_bytes(values: npt.NDArray[Any], top: float) -> UInt8:
    if values.dtype == np.uint8 and top == 255:
        return values
    scaled = np.multiply(values, 255 / top, dtype=np.float64 if values.dtype.itemsize > 2 else np.float32)
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), dtype=np.uint8)


def _coloured(values: UInt8, samples: Samples) -> UInt8:
    height, width = values.shape[:2]
    match samples.colour:
        case "inverted grey":
            return np.repeat(255 - values, 3, axis=2)
        case "grey":
            return np.repeat(values, 3, axis=2)
        case "ycbcr":
            return np.asarray(Image.frombytes("YCbCr", (width, height), values.tobytes()).convert("RGB"))
        case "cmyk" if samples.profile is None:
            ink = 255 - values.astype(np.uint16)
            return ((ink[..., :3] * ink[..., 3:] + 127) // 255).astype(np.uint8)
        case "cmyk" | "lab":
            mode = samples.colour.upper()
            image = Image.frombytes(mode, (width, height), values.tobytes())  # Pillow and TIFF store LAB alike
            return np.asarray(ImageCms.applyTransform(image, _to_srgb(mode, samples.profile)))
    return values


@lru_cache(maxsize=8)
def _to_srgb(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform:
    source = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def check_profile(samples: Samples) -> None:
    """Raise SamplesError for a colour profile that cannot be followed."""
    if samples.colour in ("cmyk", "lab"):
        try:
            if samples.profile or samples.colour == "lab":
                _to_srgb(samples.colour.upper(), samples.profile)
        except (ImageCms.PyCMSError, OSError) as error:
            raise SamplesError("its colour profile cannot be followed") from error
