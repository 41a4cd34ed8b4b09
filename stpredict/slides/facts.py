"""What an image file states of itself, read here and not by the libraries that decode it, which guess at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stpredict.errors import SlideError
from stpredict.slides.image_headers import ratio, read_header
from stpredict.slides.resolution import Resolution, stated, stated_per_unit
from stpredict.slides.tiff_pages import read_image_page

NOTHING = Resolution()
TURNED = range(2, 9)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Facts:
    """Resolution, and for TIFF the page that is the image, its width and height; notes say what is not read."""

    resolution: Resolution = NOTHING
    page: int = 0
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


def read_facts(path: Path) -> Facts | None:
    """What a TIFF, JPEG or PNG file states; None where it begins like TIFF, and cannot be read as that.

    Raises SlideError where what a reader shows would not be the slide.

    An image that its orientation tag turns is refused: browsers and image editors show it turned, but OpenSlide,
    Bio-Formats and ImageIO, with which QuPath reads, show it as it is stored. Read either way, a mask that was drawn in
    one of them, or a picture that is laid on the slide in another, would lie elsewhere.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF
    if not is_tiff:
        statements, orientation = read_header(path)
        refuse_turned(path, orientation)
        return Facts(Resolution(tuple(statements)))
    page = read_image_page(path)
    if page is None:
        return None
    refuse_turned(path, page.orientation)
    return Facts(Resolution(tuple(page.statements)), page.number, page.size, page.notes)


def stated_by_openslide(properties: Mapping[str, str]) -> Resolution:
    """What the makers of scanners write, in OpenSlide's words, and for Aperio the tags of the same page."""
    vendor = properties.get("openslide.vendor", "")
    x, y = (ratio(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    found = stated(f"{vendor} metadata", x, y)
    if vendor == "aperio":
        x, y = (ratio(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
        unit = {"inch": "in", "centimeter": "cm"}.get(properties.get("tiff.ResolutionUnit", ""), "")
        found += stated_per_unit("TIFF tags", x, y, unit)
    return Resolution(tuple(found))


def refuse_turned(path: Path, orientation: int) -> None:
    """Raise SlideError for an orientation, as EXIF and TIFF number them, of 2 to 8."""
    if orientation in TURNED:
        raise SlideError(
            f"{path.name}: its orientation tag ({orientation}) turns it in image editors, not in QuPath, so masks or "
            "pictures would lie elsewhere on it; save it upright, from an image editor or by `magick -auto-orient`."
        )
