"""What an image file states about itself. It is read here, because the libraries that decode the image guess at it."""

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
    """Resolution; for TIFF also the page that is the image, its width and height. `notes` say what is not read."""

    resolution: Resolution = NOTHING
    page: int = 0
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


def read_facts(path: Path) -> Facts | None:
    """What a TIFF, JPEG or PNG file states; None if it begins like TIFF, but cannot be read as TIFF.

    Raises SlideError if a reader would show something else than the slide.

    An image whose orientation tag turns it is refused. Browsers and image editors show it turned; OpenSlide,
    Bio-Formats and ImageIO, which QuPath uses, show it as it is stored. So a mask drawn in a program of one kind would
    lie elsewhere in one of the other, and so would a picture laid on the slide.
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
    """The resolution that makers of scanners write, by OpenSlide's properties; for Aperio also by the page's tags."""
    vendor = properties.get("openslide.vendor", "")
    x, y = (ratio(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    found = stated(f"{vendor} metadata", x, y)
    if vendor == "aperio":
        x, y = (ratio(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
        unit = {"inch": "in", "centimeter": "cm"}.get(properties.get("tiff.ResolutionUnit", ""), "")
        found += stated_per_unit("TIFF tags", x, y, unit)
    return Resolution(tuple(found))


def refuse_turned(path: Path, orientation: int) -> None:
    """Raise SlideError for an orientation of 2 to 8, as EXIF and TIFF number them."""
    if orientation in TURNED:
        raise SlideError(
            f"{path.name}: its orientation tag ({orientation}) turns it in image editors, not in QuPath, so masks or "
            "pictures would lie elsewhere on it; save it upright, from an image editor or by `magick -auto-orient`."
        )
