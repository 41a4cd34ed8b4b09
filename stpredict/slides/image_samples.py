"""PNG, JPEG and TIFF images as libvips opens them, and what their samples mean."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyvips

from stpredict.slides.samples import Samples, SamplesError, check_profile, full_value, note_of_range
from stpredict.slides.stored_tiles import check_jpeg_segments

#: An image without tiles is decoded as a whole, to a temporary file.
MAX_PLAIN_PIXELS = 3_000_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def open_image(path: Path, page: int = 0) -> tuple[pyvips.Image, Samples | None, list[str]]:
    """An image, or a page of one; the meaning of its samples unless libvips reads them as RGB; and notes on that.

    Raises SamplesError, pyvips.Error for a damaged image, TileError for a damaged TIFF file.
    """
    # As strict as OpenSlide; and never from libvips's cache, which may hold an earlier file of this name.
    of_page = {"page": page} if page else {}
    image = pyvips.Image.new_from_file(str(path), access="random", fail_on="warning", revalidate=True, **of_page)
    if image.width * image.height > MAX_PLAIN_PIXELS:
        raise SamplesError(f"its {image.width} x {image.height} pixels are too many for a plain image")
    if image.get("vips-loader") == "tiffload":
        check_jpeg_segments(path, page)  # libvips silently fills missing parts with grey
    if image.format not in ("uchar", "ushort") or image.bands > 4:
        raise SamplesError(f"neither a colour nor a grey image ({image.bands} bands of {image.format})")
    samples, notes = image_samples(image, path)
    if samples is None:
        image = image.colourspace("srgb")
        image = image.flatten(background=255) if image.hasalpha() else image
        if image.bands != 3:
            raise SamplesError(f"neither a colour nor a grey image ({image.bands} bands)")
    return image, samples, notes


def image_samples(image: pyvips.Image, path: Path) -> tuple[Samples | None, list[str]]:
    """The meaning of deep or CMYK samples, and notes on it; None if libvips reads the samples as all readers do.

    Raises SamplesError, or pyvips.Error for a damaged image.
    """
    n_colours = image.bands - image.hasalpha()
    if image.interpretation == "cmyk":
        profile = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
        if image.format != "uchar" or n_colours != 4:
            raise SamplesError("its CMYK colours are not of 8 bits; save it as RGB")
        samples = Samples("cmyk", profile=profile)
        check_profile(samples)
        return samples, []
    if image.format != "ushort" or n_colours not in (1, 3):
        return None, []
    dtype = np.dtype(np.uint16)
    low, high = (getattr(image.extract_band(0, n=n_colours), which)() for which in ("min", "max"))
    top = full_value(dtype, 16, low, high, _significant(path))
    alpha_top = full_value(dtype, 16, 0, image.extract_band(n_colours).max()) if image.hasalpha() else 65535
    samples = Samples("rgb" if n_colours == 3 else "grey", top, n_colours if image.hasalpha() else None, alpha_top)
    note = note_of_range(dtype, 16, high, top)
    return samples, [note] if note else []


def _significant(path: Path) -> float | None:
    """The highest value of a PNG's significant bits (its chunk sBIT), which comes before its pixels."""
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return None
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name == b"IDAT":
                return None
            if name == b"sBIT" and size <= 4:
                return 2.0 ** max(file.read(size), default=0) - 1
            file.seek(size + 4, 1)
    return None
