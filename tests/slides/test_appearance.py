"""What does not look like H&E in bright field is told; what shows nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
from calls import run
from PIL import Image
from slides_to_try import tiff_pyramid

from stpredict.errors import NoTissueError, SlideError
from stpredict.slides.appearance import appearance


@pytest.fixture(scope="module")
def overview(region) -> np.ndarray:
    return np.asarray(Image.fromarray(region).reduce(16))


def grey_of(image: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, axis=2)


def stained(image: np.ndarray) -> np.ndarray:
    """A part of it without glass."""
    return image[70:110, 40:80]


def test_the_example_slide_and_its_tissue_are_plausible(overview):
    assert appearance("slide.tif", overview) is None
    assert appearance("slide.tif", stained(overview)) is None
    assert appearance("slide.tif", np.full_like(overview, 235) - overview // 20) is not None  # faint, and grey
    padded = np.zeros((2 * len(overview), *overview.shape[1:]), np.uint8)
    padded[len(overview) // 3 * 2 :] = 255
    padded[len(overview) :] = overview
    assert appearance("slide.tif", padded) is None  # black where nothing was scanned


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda image: 255 - image, "dark"), (lambda image: grey_of(255 - image), "dark"), (grey_of, "grey throughout"),
        (lambda image: 255 - stained(image), "green"), (lambda image: image // 4, "brighter than"),
    ],
)  # fmt: skip
def test_what_is_implausible_is_told(overview, change, says):
    assert says in str(appearance("slide.tif", change(overview)))


def test_fluorescence_is_told(overview):
    image = np.zeros_like(overview)
    image[40:90, 30:100, 2] = 200
    assert "fluorescence" in str(appearance("slide.tif", image))


@pytest.mark.parametrize("colour", [0, 120, 242, 255])
def test_one_colour_is_refused(overview, colour):
    with pytest.raises(NoTissueError, match=r"slide\.tif: no tissue found: it has one colour throughout"):
        appearance("slide.tif", np.full_like(overview, colour))


def test_black_is_refused(overview):
    with pytest.raises(SlideError, match=r"slide\.tif: is black throughout"):
        appearance("slide.tif", overview // 16)


def predict(path, tiny_model_path, *more):
    return run("predict", path, "-m", tiny_model_path, "--genes", "GNAS", "--engine", "eager", *more)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_predict_warns_once_and_refuses_black_and_white(tmp_path, region, tiny_model_path):
    image = region[600:1400, 600:1400]
    tiff_pyramid(tmp_path / "inverted.tif", 255 - image, (0.5, 0.5), levels=1)
    done = predict(tmp_path / "inverted.tif", tiny_model_path)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("H&E in bright field") == 1
    spots = tmp_path / "spots.csv"
    spots.write_text("x,y\n400,400\n300,300\n")
    for name, pixels in (("black", image // 16), ("white", np.full_like(image, 255))):
        tiff_pyramid(tmp_path / f"{name}.tif", pixels, (0.5, 0.5), levels=1)
        done = predict(tmp_path / f"{name}.tif", tiny_model_path, "--spots", spots)
        assert done.exit_code == 1, done.output
        assert f"{name} throughout" in done.stderr or "one colour throughout, white" in done.stderr
