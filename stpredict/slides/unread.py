"""Say in words what a file is that cannot be read, and the way out."""

from __future__ import annotations

from pathlib import Path

import tifffile

from stpredict.errors import SlideError

WAY_OUT = "save it with JPEG, LZW or deflate compression, as `vips tiffsave` or QuPath do"
OTHER_WAY_OUT = "save it as a TIFF, PNG or JPEG image"
#: TIFF compressions by their common names; others go by tifffile's name.
COMPRESSIONS = {
    2: "CCITT fax", 3: "CCITT fax", 4: "CCITT fax", 6: "old-style JPEG", 7: "JPEG of an unusual kind",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34933: "PNG",
    34934: "JPEG XR", 22610: "JPEG XR", 34892: "lossy JPEG of DNG", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
    52546: "JPEG XL", 34661: "JBIG",
}  # fmt: skip
#: The first bytes of files of other kinds, and the names of these kinds.
KINDS = (
    (0, b"BM", "a BMP image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"ZISRAWFILE", "a Zeiss CZI file"),
    (0, b"\x70\0\0\0", "a Leica LIF file"),
    (0, b"\xda\xce\xbe\x0a", "a Nikon ND2 file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop document"),
)


def cannot_decode(path: Path, compression: int) -> str:
    """One sentence on a TIFF file with a compression that this program does not decode."""
    try:
        name = COMPRESSIONS.get(compression) or tifffile.COMPRESSION(compression).name
    except ValueError:
        name = f"compression {int(compression)}"
    return f"{path.name}: stored as {name}, which cannot be read here; {WAY_OUT}."


def demand_readable(path: Path) -> None:
    """Raise SlideError for a file that is unreadable, empty, or not a regular file: reading a pipe may never end."""
    try:
        if not path.is_file():
            raise SlideError(f"{path.name}: is a pipe, a socket or a device; name a file.")
        with path.open("rb") as file:
            if not file.read(1):
                raise SlideError(f"{path.name}: the file is empty.")
    except OSError as error:
        raise SlideError(f"{path.name}: cannot be read ({error.strerror}).") from error


def no_slide(path: Path, what: str, error: Exception) -> SlideError:
    """The message for a file that no reader opens: its kind if that is known, else the last reader's message."""
    with path.open("rb") as file:
        head = file.read(16)
    kind = next((kind for start, begin, kind in KINDS if head[start : start + len(begin)] == begin), None)
    if kind:
        return SlideError(f"{path.name}: {kind}, which is damaged or cannot be read here; {OTHER_WAY_OUT}.")
    name = path.name if path.name.isprintable() else repr(path.name)  # e.g. bytes that are not text
    return SlideError(f"{name}: {what} ({one_line(error)}).")


def one_line(error: Exception) -> str:
    """A library's message, which may quote the file: its last line, without control characters."""
    line = str(error).strip().split("\n")[-1].strip()
    return "".join(letter if letter.isprintable() else "?" for letter in line)
