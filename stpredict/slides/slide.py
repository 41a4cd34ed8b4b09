"""Open a slide, whatever its format: size, levels, micrometres per pixel, and regions as RGB on white."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import openslide
import pyvips

from stpredict.arrays import UInt8
from stpredict.errors import MissingMppError, SlideError, SlideNotFoundError, UsageError

#: Native values outside this range are resolution tags of a camera or a printer, not of a microscope.
PLAUSIBLE_MPP = (0.05, 5.0)
MAX_ANISOTROPY = 0.02
PLAIN_IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
FINGERPRINT_BYTES = 1 << 20


class Mpp(NamedTuple):
    """Micrometres per level-0 pixel along x and y."""

    x: float
    y: float


class Bounds(NamedTuple):
    """The scanned rectangle, in level-0 pixels; the whole slide where the file names none."""

    x: int
    y: int
    width: int
    height: int


class Slide(ABC):
    """One slide file. Coordinates are level-0 pixels unless a level is named. Use as a context manager."""

    reader: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.level_dimensions: list[tuple[int, int]] = []
        self.native_mpp: Mpp | None = None
        self.bounds = Bounds(0, 0, 0, 0)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def dimensions(self) -> tuple[int, int]:
        return self.level_dimensions[0]

    def downsample(self, level: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of `level`, along x and y."""
        (width, height), (level_width, level_height) = self.dimensions, self.level_dimensions[level]
        return width / level_width, height / level_height

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """RGB, height x width x 3, of a region given in pixels of `level`; white beyond the slide.

        Raises SlideError where the file cannot be decoded.
        """
        out = np.full((height, width, 3), 255, np.uint8)
        level_width, level_height = self.level_dimensions[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        if left < right and top < bottom:
            out[top - y : bottom - y, left - x : right - x] = self._read_inside(
                level, left, top, right - left, bottom - top
            )
        return out

    @abstractmethod
    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8: ...

    @abstractmethod
    def close(self) -> None: ...

    def fingerprint(self) -> str:
        """sha256 of size, dimensions and both ends of the file: quick, and changes when the file is replaced."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(f"{size} {self.level_dimensions}".encode())
        with self.path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(size - FINGERPRINT_BYTES, 0))
            digest.update(file.read(FINGERPRINT_BYTES))
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OpenSlideSlide(Slide):
    """Any format that OpenSlide reads."""

    reader = "openslide"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._slide = openslide.OpenSlide(path)
        self.level_dimensions = list(self._slide.level_dimensions)
        properties = self._slide.properties
        mpp_x, mpp_y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        if mpp_x is not None and mpp_y is not None:
            self.native_mpp = Mpp(mpp_x, mpp_y)
        bounds = [_number(properties.get(f"openslide.bounds-{side}")) for side in ("x", "y", "width", "height")]
        self.bounds = Bounds(0, 0, *self.dimensions)
        if None not in bounds:
            self.bounds = Bounds(*(int(side) for side in bounds if side is not None))

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        scale_x, scale_y = self.downsample(level)
        try:
            image = self._slide.read_region((round(x * scale_x), round(y * scale_y)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path.name}: damaged slide, a region cannot be decoded ({error}).") from error
        rgba = np.asarray(image)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            rgb = ((rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16)) + 127) // 255).astype(
                np.uint8
            )
        return rgb

    def close(self) -> None:
        self._slide.close()


class PlainImageSlide(Slide):
    """A JPEG, PNG or TIFF image without a pyramid, read through libvips."""

    reader = "libvips"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        image = pyvips.Image.new_from_file(str(path), access="random", fail_on="truncated")
        if image.format not in ("uchar", "ushort") or image.bands > 4:
            raise SlideError(f"{path.name}: neither a colour nor a grey image ({image.bands} bands of {image.format}).")
        self.level_dimensions = [(image.width, image.height)]
        self.bounds = Bounds(0, 0, image.width, image.height)
        if image.xres > 0 and image.yres > 0 and (image.xres, image.yres) != (1, 1):  # 1 / mm: libvips knows nothing
            self.native_mpp = Mpp(1000 / image.xres, 1000 / image.yres)
        image = image.colourspace("srgb")
        self._image = image.flatten(background=255) if image.hasalpha() else image
        if self._image.bands != 3:
            raise SlideError(f"{path.name}: neither a colour nor a grey image ({self._image.bands} bands).")

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:  # noqa: ARG002 (one level)
        try:
            region: UInt8 = self._image.crop(x, y, width, height).numpy()
        except pyvips.Error as error:
            raise SlideError(
                f"{self.path.name}: damaged image, a region cannot be decoded ({_first_line(error)})."
            ) from error
        return region

    def close(self) -> None:
        del self._image


def open_slide(path: str | Path) -> Slide:
    """Open a slide with OpenSlide, or as a plain image.

    Raises SlideNotFoundError if there is no such file, SlideError if it is no slide or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise SlideNotFoundError(f"{path}: no such file.")
    if path.is_dir():
        raise SlideNotFoundError(f"{path}: is a directory; name the slide files in it.")
    if path.stat().st_size == 0:
        raise SlideError(f"{path.name}: the file is empty.")
    try:
        return OpenSlideSlide(path)
    except openslide.OpenSlideError as error:
        if path.suffix.lower() not in PLAIN_IMAGES:
            raise SlideError(f"{path.name}: not a slide, or a damaged one ({error}).") from error
    try:
        return PlainImageSlide(path)
    except (pyvips.Error, UnicodeEncodeError) as error:
        raise SlideError(f"{path.name!r}: not an image that can be read ({_first_line(error)}).") from error


def resolve_mpp(slide: Slide, given_mpp: float | None = None) -> Mpp:
    """The slide's mpp: `given_mpp` if there is one, else the slide's own.

    Raises UsageError for a nonsensical `given_mpp`, MissingMppError where the slide has none or an implausible one.
    """
    if given_mpp is not None:
        if not (math.isfinite(given_mpp) and given_mpp > 0):
            raise UsageError(f"--mpp {given_mpp:g}: must be a positive number of micrometres per pixel.")
        return Mpp(given_mpp, given_mpp)
    remedy = "give it with --mpp, in micrometres per pixel of the finest level"
    if slide.native_mpp is None:
        raise MissingMppError(f"{slide.path.name}: the file does not say its micrometres per pixel; {remedy}.")
    x, y = slide.native_mpp
    low, high = PLAUSIBLE_MPP
    if not all(low <= value <= high for value in (x, y)):
        raise MissingMppError(f"{slide.path.name}: {x:.4g} x {y:.4g} um per pixel is implausible; {remedy}.")
    if abs(x - y) > MAX_ANISOTROPY * max(x, y):
        raise MissingMppError(
            f"{slide.path.name}: {x:.4g} and {y:.4g} um per pixel along x and y differ too much; {remedy}."
        )
    return slide.native_mpp


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
