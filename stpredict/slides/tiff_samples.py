"""TIFF files that OpenSlide and libvips misread or do not read: deep or floating-point samples, CMYK, JPEG XL ...

tifffile and imagecodecs read the pixels. They would fill in parts of a damaged file; this module refuses it.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from stpredict.arrays import UInt8
from stpredict.errors import SlideError, first_line
from stpredict.slides.samples import (
    COUNT,
    Colour,
    Samples,
    SamplesError,
    as_rgb,
    check_profile,
    full_value,
    note_of_range,
)
from stpredict.slides.stored_tiles import MAX_PAGES, TileError
from stpredict.slides.unread import cannot_decode

#: Bytes of decoded strips and tiles to keep.
CACHE_BYTES = 256 << 20
#: Pixels of the largest strip or tile, which is decoded as a whole.
MAX_SEGMENT_PIXELS = 1 << 26
#: Rows to read at a time if the file stores pixels uncompressed, one after the other.
PLAIN_ROWS = 64
#: The range of values comes from the coarsest level that has at least so many pixels.
ENOUGH_PIXELS = 1_000_000
COLOURS: dict[int, Colour] = {
    PHOTOMETRIC.MINISWHITE: "inverted grey", PHOTOMETRIC.MINISBLACK: "grey", PHOTOMETRIC.RGB: "rgb",
    PHOTOMETRIC.PALETTE: "palette", PHOTOMETRIC.SEPARATED: "cmyk", PHOTOMETRIC.YCBCR: "ycbcr",
    PHOTOMETRIC.CIELAB: "lab",
}  # fmt: skip
#: Photometric interpretations, and compressions, that OpenSlide and libvips read alike.
ORDINARY = {*range(4), int(PHOTOMETRIC.YCBCR)}
READ_ALIKE = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50001}
APERIO_JPEG_2000 = (33003, 33005)
#: Compressions that are decoded here. Other decoders, such as that of JPEG XR, invent pixels if a file is damaged.
DECODED = READ_ALIKE | {33003, 33005, 34712, 34887, 34925, 34933, 50000, 50002, 52546}
#: Codecs that convert to RGB themselves.
OWN_COLOURS = {COMPRESSION.JPEG, 50001, 50002, 52546, 33005}
ASSOCIATED, UNASSOCIATED = 1, 2


@dataclass(frozen=True)
class Level:
    """One page: its strips or tiles, or groups of rows if its pixels are stored uncompressed."""

    page: tifffile.TiffPage
    dtype: np.dtype[Any]
    plain: bool
    height: int
    width: int
    columns: int
    rows: int
    planes: int
    decode: Callable[..., Any]

    @property
    def count(self) -> int:
        return self.columns * self.rows


class TiffSamples:
    """The pixels of some pages of a TIFF file, its levels. `notes` say what was guessed about the values."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage]) -> None:
        self._path, self._tiff = path, tiff
        self._lock = threading.Lock()
        self._levels = [_level(page) for page in pages]
        biggest = max(level.height * level.width for level in self._levels)
        if biggest > MAX_SEGMENT_PIXELS:
            raise SamplesError("its strips or tiles are too large to be decoded; save it in tiles")
        self._segment = lru_cache(max(8, CACHE_BYTES // (3 * biggest)))(self._rgb_segment)
        self.notes: list[str] = []
        self._samples = self._find_samples()
        check_profile(self._samples)

    @property
    def dimensions(self) -> tuple[int, int]:
        return self._levels[0].page.imagewidth, self._levels[0].page.imagelength

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """RGB, height x width x 3, of a region within `level`. Raises TileError."""
        found = self._levels[level]
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // found.height, -(-(y + height) // found.height)):
            for column in range(x // found.width, -(-(x + width) // found.width)):
                top, left = row * found.height, column * found.width
                y0, y1 = max(y, top), min(y + height, top + found.height)
                x0, x1 = max(x, left), min(x + width, left + found.width)
                segment = self._segment(level, row * found.columns + column)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def close(self) -> None:
        self._tiff.close()

    def _rgb_segment(self, level: int, index: int) -> UInt8:
        return as_rgb(self._raw(level, index), self._samples)

    def _raw(self, level: int, index: int) -> npt.NDArray[Any]:
        """Samples of one segment, H x W x S. Raises TileError."""
        found = self._levels[level]
        planes = [self._raw_plane(found, index + plane * found.count, index) for plane in range(found.planes)]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _raw_plane(self, level: Level, index: int, place: int) -> npt.NDArray[Any]:
        page = level.page
        per_pixel = 1 if level.planes > 1 else page.samplesperpixel
        if level.plain:
            row_bytes = page.imagewidth * per_pixel * level.dtype.itemsize
            rows = min(level.height, page.imagelength - place * level.height)
            start = (index // level.count) * page.imagelength * row_bytes + place * level.height * row_bytes
            stored = self._stored(page.dataoffsets[0] + start, rows * row_bytes)
            dtype = level.dtype.newbyteorder(">" if page.parent.byteorder == ">" else "<")
            return np.frombuffer(stored, dtype).reshape(rows, page.imagewidth, per_pixel)
        stored = self._stored(page.dataoffsets[index], page.databytecounts[index])
        is_jpeg = page.compression == COMPRESSION.JPEG
        if is_jpeg and per_pixel != 4:
            raise SlideError(cannot_decode(self._path, page.compression))
        try:
            if is_jpeg:
                rows = min(level.height, page.imagelength - place // level.columns * level.height)
                return _strict_jpeg(stored, level, rows)
            if _claimed_pixels(stored) > MAX_SEGMENT_PIXELS:
                raise TileError("one of its strips or tiles claims to be larger than its place")
            segment = level.decode(stored, index)[0]
        except (ImportError, NotImplementedError) as error:
            raise SlideError(cannot_decode(self._path, page.compression)) from error
        except Exception as error:  # codecs fail in many ways, all due to damage
            raise TileError(str(error) or type(error).__name__) from error
        if segment.dtype.newbyteorder("=") != level.dtype.newbyteorder("="):
            raise TileError(f"one of its strips or tiles is of {segment.dtype}")
        return np.asarray(segment[0], dtype=np.uint8 if segment.dtype.kind == "b" else None)

    def _stored(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._tiff.filehandle.seek(offset)
            stored: bytes = self._tiff.filehandle.read(size)
        if len(stored) < size or not size:
            raise TileError("one of its strips or tiles is missing")
        return stored

    def _find_samples(self) -> Samples:
        """The meaning of the samples; deep ones are searched for their range. Raises SamplesError, TileError."""
        page, dtype = self._levels[0].page, self._levels[0].dtype
        samples = _described(page)
        if dtype.itemsize == 1 and dtype.kind in "ub":
            top = 2.0**page.bitspersample - 1
            return replace(samples, top=top, alpha_top=top)
        colours = COUNT[samples.colour]
        if samples.colour in ("palette", "lab"):
            if samples.colour == "lab" or dtype.kind != "u":
                raise SamplesError(f"its {samples.colour} colours are not of 8 bits; save it as RGB")
            return samples
        (low, high), (alpha_low, alpha_high) = self._extremes(colours, samples.alpha)
        top = full_value(dtype, page.bitspersample, low, high, _stated(page))
        if note := note_of_range(dtype, page.bitspersample, high, top):
            self.notes.append(note)
        return replace(samples, top=top, alpha_top=full_value(dtype, page.bitspersample, alpha_low, alpha_high))

    def _extremes(self, colours: int, alpha: int | None) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest values of colours and of opacity, in the coarsest large level that can be decoded."""
        large = [
            i for i, each in enumerate(self._levels) if each.page.imagewidth * each.page.imagelength > ENOUGH_PIXELS
        ]
        for level in reversed(large or [0]):
            try:
                segments = list(self._ranges(level, colours, alpha))
            except TileError:
                if level == 0:
                    raise
                continue
            low, high = np.array(segments).T.reshape(2, 2, -1)
            return (float(low[0].min()), float(high[0].max())), (float(low[1].min()), float(high[1].max()))
        raise TileError("none of its levels can be decoded")

    def _ranges(self, level: int, colours: int, alpha: int | None) -> Iterator[list[float]]:
        """For each segment: lowest colour, lowest opacity, highest colour, highest opacity."""
        page = self._levels[level].page
        for index in range(self._levels[level].count):
            found = self._levels[level]
            height = page.imagelength - index // found.columns * found.height  # without the padding of tiles
            width = page.imagewidth - index % found.columns * found.width
            raw = self._raw(level, index)[:height, :width]
            opacity = raw[..., :1] if alpha is None else raw[..., alpha]
            of = raw[..., :colours]
            yield [float(of.min()), float(opacity.min()), float(of.max()), float(opacity.max())]


def open_tiff_samples(
    path: Path, level_dimensions: Sequence[tuple[int, int]] | None = None, aperio: bool = False, page: int = 0
) -> TiffSamples | None:
    """The pixels of a TIFF file whose samples OpenSlide and libvips cannot read correctly; None for any other file.

    Without `level_dimensions` the page of that number is the only level. OpenSlide reads JPEG 2000 in `aperio` files.
    Raises SlideError if the colours cannot be known.
    """
    tiff = None
    try:
        tiff = tifffile.TiffFile(path)
        first = tiff.pages[page]
        if not isinstance(first, tifffile.TiffPage):
            raise TypeError("no whole page")
        pages: list[tifffile.TiffPage | None] = [first]
        if (aperio and first.compression in APERIO_JPEG_2000) or not _is_odd(first):
            tiff.close()
            return None
        if level_dimensions:
            found = {
                (each.imagewidth, each.imagelength): each
                for each in reversed(list(tiff.pages[:MAX_PAGES]))
                if isinstance(each, tifffile.TiffPage) and _same_kind(each, first)
            }
            pages = [found.get(size) for size in level_dimensions]
    except Exception:  # noqa: BLE001 (the other readers say what is wrong with the file)
        if tiff:
            tiff.close()
        return None
    try:
        if None in pages:
            raise SamplesError("its levels are stored in different ways; save it anew, as a pyramid")
        if first.compression not in DECODED or (first.compression == COMPRESSION.JPEG and first.bitspersample != 8):
            raise SlideError(cannot_decode(path, first.compression))
        return TiffSamples(path, tiff, [each for each in pages if each])
    except Exception as error:  # tags may claim anything
        tiff.close()
        if isinstance(error, SlideError | MemoryError):
            raise
        if isinstance(error, SamplesError):
            raise SlideError(f"{path.name}: {error}.") from error
        raise SlideError(f"{path.name}: damaged, a region cannot be decoded ({first_line(error)}).") from error


def _is_odd(page: tifffile.TiffPage) -> bool:
    """Do OpenSlide and libvips misread such a page, or fail to read it?"""
    n, extra = page.samplesperpixel, page.extrasamples
    kind = page.photometric
    if page.compression not in READ_ALIKE or kind not in ORDINARY or page.bitspersample > 8 or page.sampleformat != 1:
        return True
    if kind == PHOTOMETRIC.YCBCR and page.compression not in OWN_COLOURS and not page.is_subsampled:
        return True  # libvips takes it for RGB
    if kind in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        return not (n == 3 or (n == 4 and tuple(extra[:1]) in ((ASSOCIATED,), (UNASSOCIATED,))))
    return bool(n != 1)


def _same_kind(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    tags = ("compression", "photometric", "bitspersample", "sampleformat", "samplesperpixel", "planarconfig")
    return all(getattr(page, tag) == getattr(first, tag) for tag in tags) and page.is_tiled == first.is_tiled


def _level(page: tifffile.TiffPage) -> Level:
    if page.imagedepth != 1 or page.dtype is None:
        raise SamplesError("it is a volume" if page.dtype is not None else "its samples are of no kind that is known")
    plain = bool(page.is_contiguous) and page.predictor == 1 and page.fillorder == 1
    width = page.tilewidth if page.is_tiled and not plain else page.imagewidth
    height = PLAIN_ROWS if plain else page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    columns, rows = -(-page.imagewidth // width), -(-page.imagelength // height)
    planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    if not plain and min(len(page.dataoffsets), len(page.databytecounts)) < columns * rows * planes:
        raise TileError("some of its strips or tiles are missing")
    return Level(page, page.dtype, plain, height, width, columns, rows, planes, page.decode)


def _described(page: tifffile.TiffPage) -> Samples:
    """The samples as the tags describe them. Raises SamplesError."""
    colour = COLOURS.get(page.photometric)
    if colour is None:
        raise SamplesError(f"its colours are {getattr(page.photometric, 'name', page.photometric)}; save it as RGB")
    if colour == "cmyk" and page.tags.valueof(332, 1) != 1:  # InkSet
        raise SamplesError("its inks are not those of CMYK; save it as RGB")
    if colour == "ycbcr" and page.compression in OWN_COLOURS:
        colour = "rgb"
    extra = [int(kind) for kind in page.extrasamples]
    count = page.samplesperpixel - len(extra)
    if count != COUNT[colour] and page.samplesperpixel != COUNT[colour]:
        raise SamplesError(f"its {page.samplesperpixel} samples are not said to be colours; save it as RGB")
    if count < COUNT[colour] or (colour in ("grey", "inverted grey") and len(extra) > 1):
        raise SamplesError(f"its {page.samplesperpixel} samples are not said to be colours; save it as RGB")
    opaque = next((i for i, kind in enumerate(extra) if kind in (ASSOCIATED, UNASSOCIATED)), None)
    alpha = None if opaque is None else COUNT[colour] + opaque
    palette = np.asarray(page.colormap).T if colour == "palette" else None
    if palette is not None:
        palette = (palette / 257 if palette.max() > 255 else palette).round().astype(np.uint8)
    profile = page.tags.valueof(34675)  # an ICC profile
    return Samples(
        colour, alpha=alpha, premultiplied=opaque is not None and extra[opaque] == ASSOCIATED, palette=palette,
        profile=bytes(profile) if profile and colour == "cmyk" else None,
    )  # fmt: skip


def _stated(page: tifffile.TiffPage) -> float | None:
    """The highest value that tags or OME-XML state: MaxSampleValue, SMaxSampleValue, SignificantBits."""
    values = [page.tags.valueof(281), page.tags.valueof(341)]
    found = [max(value) if isinstance(value, tuple) else value for value in values if value]
    if bits := re.search(r'SignificantBits="(\d{1,2})"', page.description or ""):
        found.append(2.0 ** int(bits[1]) - 1)
    return min(map(float, found), default=None)


def _strict_jpeg(stored: bytes, level: Level, rows: int) -> UInt8:
    """The stored samples of a JPEG of four components. imagecodecs would fill in damaged parts."""
    tables = (level.page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]
    buffer = np.empty(4 * level.height * level.width, np.uint8)  # too small for an image that claims to be larger
    pixels: UInt8 = simplejpeg.decode_jpeg(tables + stored[2:], "CMYK", buffer=buffer, strict=True)
    if pixels.shape[0] < rows or pixels.shape[1] != level.width:
        raise ValueError(f"a strip or tile of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels


def _claimed_pixels(stored: bytes) -> int:
    """Width times height that a JPEG 2000 stream or a PNG image states; 0 for anything else."""
    if (start := stored.find(b"\xff\x4f\xff\x51", 0, 1024)) >= 0 and len(stored) >= start + 24:
        right, bottom, left, top = struct.unpack_from(">4I", stored, start + 8)
        return int((right - left) * (bottom - top))
    if stored[:8] == b"\x89PNG\r\n\x1a\n" and len(stored) >= 24:
        width, height = struct.unpack_from(">2I", stored, 16)
        return int(width * height)
    return 0
