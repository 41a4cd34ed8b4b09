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
from stpredict.errors import LevelError, MissingMppError, SlideError, SlideNotFoundError, UsageError
from stpredict.slides.facts import Facts, read_facts, refuse_turned, stated_by_openslide
from stpredict.slides.image_samples import open_image
from stpredict.slides.resolution import PLAUSIBLE_MPP as PLAUSIBLE_MPP
from stpredict.slides.resolution import Mpp as Mpp
from stpredict.slides.resolution import Resolution, in_words
from stpredict.slides.samples import SamplesError, as_rgb
from stpredict.slides.stored_tiles import BLUR_PX, StoredTiles, TileError, blurred_alike, open_stored_tiles
from stpredict.slides.tiff_samples import TiffSamples, open_tiff_samples
from stpredict.slides.unread import demand_readable, no_slide, one_line

MAX_ANISOTROPY = 0.02
PLAIN_IMAGES = {".btf", ".jpg", ".jpeg", ".png", ".qptiff", ".tf2", ".tf8", ".tif", ".tiff"}
FINGERPRINT_BYTES = 1 << 20
#: OpenSlide ends the process if there is no memory for a tile.
MAX_TILE_PIXELS = 1 << 26
#: Vendors, as OpenSlide names them, whose levels are plain tiled TIFF pages.
TILED_TIFF = {"aperio", "generic-tiff"}


class Bounds(NamedTuple):
    """The scanned rectangle, in level-0 pixels; the whole slide where the file names none."""

    x: int
    y: int
    width: int
    height: int


class Slide(ABC):
    """One slide file. Coordinates are level-0 pixels unless a level is named. Use as a context manager."""

    reader: str
    #: Whether a coarser level's pixels depend on the region that is read.
    interpolates = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.level_dimensions: list[tuple[int, int]] = []
        self.resolution = Resolution()
        #: What the user should know about how the slide is read: sentences without the slide's name.
        self.notes: list[str] = []
        #: Which part of the file is read, in words, if it holds more than one picture.
        self.of_file: tuple[str, ...] = ()
        self.bounds = Bounds(0, 0, 0, 0)
        #: Why it does not look like an H&E slide, in words, once that was examined.
        self.appearance: str | None = None
        #: Levels that could not be decoded, and are not read any more.
        self.unreadable: set[int] = set()

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def dimensions(self) -> tuple[int, int]:
        return self.level_dimensions[0]

    @property
    def native_mpp(self) -> Mpp | None:
        """The resolution that the file states, plausible or not; None if it states none."""
        return self.resolution.used.mpp if self.resolution.used else None

    def _know(self, facts: Facts) -> None:
        """Keep what the file states about itself."""
        self.resolution, self.of_file = facts.resolution, facts.notes
        self.notes += facts.notes

    def downsample(self, level: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of `level`, along x and y."""
        (width, height), (level_width, level_height) = self.dimensions, self.level_dimensions[level]
        return width / level_width, height / level_height

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """RGB, height x width x 3, of a region given in pixels of `level`; white beyond the slide.

        Raises LevelError where the level cannot be decoded.
        """
        level_width, level_height = self.level_dimensions[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self._read_inside(level, x, y, width, height)
        out = np.full((height, width, 3), 255, np.uint8)
        if left < right and top < bottom:
            out[top - y : bottom - y, left - x : right - x] = self._read_inside(
                level, left, top, right - left, bottom - top
            )
        return out

    @abstractmethod
    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8: ...

    def leave_out(self, level: int) -> None:
        """Stop reading a level that could not be decoded. Nothing may be read meanwhile."""
        self.unreadable.add(level)

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
    """Any format that OpenSlide reads. JPEG tiles are decoded here if that gives the same pixels as OpenSlide."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._slide = openslide.OpenSlide(path)
        self.level_dimensions = list(self._slide.level_dimensions)
        properties = self._slide.properties
        facts = read_facts(path) if properties.get("openslide.vendor") == "generic-tiff" else None
        self._know(facts or Facts(stated_by_openslide(properties)))
        #: Whether OpenSlide shows the image itself; else the image is a page that OpenSlide does not see.
        self.is_whole = not facts or math.prod(facts.size) <= math.prod(self.dimensions)
        for level in range(len(self.level_dimensions)):
            sides = (_number(properties.get(f"openslide.level[{level}].tile-{side}")) for side in ("width", "height"))
            if math.prod(side or 1 for side in sides) > MAX_TILE_PIXELS:
                raise SlideError(f"{path.name}: its tiles are too large to be a slide's.")
        bounds = [_number(properties.get(f"openslide.bounds-{side}")) for side in ("x", "y", "width", "height")]
        self.bounds = Bounds(0, 0, *self.dimensions)
        if None not in bounds:
            self.bounds = Bounds(*(int(side) for side in bounds if side is not None))
        self._tiles: StoredTiles | TiffSamples | None = None
        self.reader = "openslide"
        if self.is_whole and properties.get("openslide.vendor") in TILED_TIFF:
            self._find_tiles(properties.get("openslide.vendor") == "aperio")
        self.interpolates = self._tiles is None

    def _find_tiles(self, aperio: bool) -> None:
        """Prepare to read the file's tiles without OpenSlide, if it misreads their samples or takes longer."""
        if samples := open_tiff_samples(self.path, self.level_dimensions, aperio):
            self._tiles, self.reader = samples, "tifffile"
            self.notes += samples.notes
        elif tiles := self._stored_tiles():
            self._tiles, self.reader = tiles, "stored tiles"

    def _stored_tiles(self) -> StoredTiles | None:
        """The slide's tiles, if OpenSlide gives the same pixels for the three tiles with most bytes of each level."""
        tiles = open_stored_tiles(self.path, self.level_dimensions)
        if tiles is None:
            return None
        try:
            same = all(self._agrees(tiles, level) for level in range(len(tiles.levels)))
        except (TileError, SlideError):
            same = False
            self._reopen()
        if not same:
            tiles.close()
        return tiles if same else None

    def _agrees(self, tiles: StoredTiles, level: int) -> bool:
        stored, (width, height) = tiles.levels[level], self.level_dimensions[level]
        for index in np.argsort(stored.sizes)[-3:].tolist():
            x, y = index % stored.columns * stored.tile_width, index // stored.columns * stored.tile_height
            region = (level, x, y, min(stored.tile_width, width - x), min(stored.tile_height, height - y))
            if min(region[3:]) < BLUR_PX:
                continue
            ours, theirs = tiles.read(*region), self._compose(*region)
            mean_step = self._slide.level_downsamples[level]  # OpenSlide's, for x and y alike
            steps = self.downsample(level)
            if all(round(at * step) / mean_step == at for at, step in zip((x, y), steps, strict=True)):
                same = bool((ours == theirs).all())
            else:  # OpenSlide interpolates between pixels there
                same = blurred_alike(ours, theirs)
            if not same:
                return False
        return True

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        if self._tiles is None:
            return self._compose(level, x, y, width, height)
        try:
            return self._tiles.read(level, x, y, width, height)
        except TileError as error:
            reason = f"{self.path.name}: damaged slide, a region cannot be decoded ({error})."
            raise LevelError(reason, level) from error

    def leave_out(self, level: int) -> None:
        super().leave_out(level)
        self._reopen()

    def _reopen(self) -> None:
        """Open the slide again: after a decoding error, OpenSlide reads nothing more of it."""
        self._slide.close()
        self._slide = openslide.OpenSlide(self.path)

    def _compose(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """A region as OpenSlide composes it, on white."""
        scale_x, scale_y = self.downsample(level)
        try:
            image = self._slide.read_region((round(x * scale_x), round(y * scale_y)), level, (width, height))
        except openslide.OpenSlideError as error:
            reason = f"{self.path.name}: damaged slide, a region cannot be decoded ({one_line(error)})."
            raise LevelError(reason, level) from error
        rgba = np.asarray(image)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            white = 255 * (255 - alpha.astype(np.uint16))
            rgb = ((rgb.astype(np.uint16) * alpha + white + 127) // 255).astype(np.uint8)
        return rgb

    def close(self) -> None:
        if self._tiles:
            self._tiles.close()
        self._slide.close()


class PlainImageSlide(Slide):
    """A JPEG, PNG or TIFF image without a pyramid, read through libvips, or tifffile where libvips would misread it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._know(facts := read_facts(path) or Facts())
        self._image: pyvips.Image | None = None
        self._tiff = open_tiff_samples(path, page=facts.page)
        if self._tiff:
            self.reader, (width, height), notes = "tifffile", self._tiff.dimensions, self._tiff.notes
        else:
            self.reader = "libvips"
            self._image, self._samples, notes = open_image(path, facts.page)
            width, height = self._image.width, self._image.height
            if self._image.get_typeof("orientation"):  # from places that only libvips reads
                refuse_turned(path, self._image.get("orientation"))
        self.notes += notes
        self.level_dimensions, self.bounds = [(width, height)], Bounds(0, 0, width, height)

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        try:
            if self._tiff:
                return self._tiff.read(level, x, y, width, height)
            assert self._image is not None
            region = self._image.crop(x, y, width, height).numpy()
        except (pyvips.Error, TileError) as error:
            reason = f"{self.path.name}: damaged image, a region cannot be decoded ({one_line(error)})."
            raise LevelError(reason, level) from error
        return as_rgb(region, self._samples) if self._samples else region

    def close(self) -> None:
        if self._tiff:
            self._tiff.close()
        self._image = None


def open_slide(path: str | Path) -> Slide:
    """Open a slide with OpenSlide, or as a plain image.

    Raises SlideNotFoundError if there is no such file, SlideError if it is not a slide, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise SlideNotFoundError(f"{path}: no such file or folder.")
    if path.is_dir():
        raise SlideNotFoundError(f"{path}: is a directory; name the slide files in it.")
    demand_readable(path)
    try:
        slide = OpenSlideSlide(path)
        if slide.is_whole:
            return slide
        slide.close()
    except openslide.OpenSlideError as error:
        if path.suffix.lower() not in PLAIN_IMAGES:
            raise no_slide(path, "not a slide, or a damaged one", error) from error
    try:
        return PlainImageSlide(path)
    except SamplesError as error:
        raise SlideError(f"{path.name}: {error}.") from error
    except (pyvips.Error, TileError, UnicodeEncodeError) as error:
        raise no_slide(path, "not an image that can be read", error) from error


def resolve_mpp(slide: Slide, given_mpp: float | None = None) -> Mpp:
    """The slide's mpp: `given_mpp`, or else the slide's own, with a note if the file contradicts itself.

    Raises UsageError for a nonsensical `given_mpp`, MissingMppError if the slide states none or an implausible one.
    """
    if given_mpp is not None:
        if not (math.isfinite(given_mpp) and given_mpp > 0):
            raise UsageError(f"--mpp {given_mpp:g}: must be a positive number of micrometres per pixel.")
        return Mpp(given_mpp, given_mpp)
    remedy = "give it with --mpp, in micrometres per pixel of the finest level"
    used = slide.resolution.used
    if used is None:
        raise MissingMppError(f"{slide.path.name}: the file does not say its micrometres per pixel; {remedy}.")
    x, y = used.mpp
    by = f"um per pixel, by its {used.by},"
    if not used.mpp.plausible:
        raise MissingMppError(f"{slide.path.name}: {in_words(used.mpp)} {by} is implausible; {remedy}.")
    if abs(x - y) > MAX_ANISOTROPY * max(x, y):
        differ = f"{x:.4g} and {y:.4g} {by} differ too much along x and y"
        raise MissingMppError(f"{slide.path.name}: {differ}; {remedy}.")
    disagreement = slide.resolution.disagreement
    if disagreement and disagreement not in slide.notes:
        slide.notes.append(disagreement)
    return used.mpp


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
