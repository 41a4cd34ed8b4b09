from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from results_to_draw import made_up

from stpredict.colour_maps import COLOUR_MAPS, lookup_table
from stpredict.errors import ResultError, UsageError
from stpredict.rendering.colour import Cohort, ColourScale, ScaleRequest, colour_scale
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 10.0)


@pytest.fixture
def results(tmp_path):
    values = np.linspace(0, 10, len(SPOTS))[:, None]
    values[0] = np.nan
    return made_up(tmp_path / "a.h5ad", SPOTS, values), made_up(tmp_path / "b.h5ad", SPOTS, values + 20)


def test_colours_clip_and_follow_the_map():
    scale = ColourScale("G", 2.0, 4.0, "", "")
    table = lookup_table("viridis")
    np.testing.assert_array_equal(scale.colours(np.array([[-9], [2], [3], [4], [99.0]])), table[[0, 0, 128, 255, 255]])


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_maps_are_sequential_so_that_they_can_be_read_without_colour(name):
    table = lookup_table(name)
    assert table.shape == (256, 3)
    linear = np.where(table / 255 <= 0.04045, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > -0.003).all()
    assert luminance[-1] - luminance[0] > 0.5


def test_the_slides_own_range_leaves_out_the_outermost_percent(results):
    a, _ = results
    scale = colour_scale(a, 0, ScaleRequest("slide"))
    known = a.expression("G0")[1:]
    assert (scale.low, scale.high) == pytest.approx(tuple(np.percentile(known, (1, 99))))
    assert scale.range_from == "percentiles 1 to 99 of this slide"
    assert colour_scale(a, 0, ScaleRequest("card")) == scale  # this model's card has no range


def test_one_scale_for_a_cohort_spans_all_its_slides(results):
    scales = [colour_scale(result, 0, ScaleRequest(cohort=Cohort(results))) for result in results]
    assert scales[0] == scales[1]
    assert scales[0].low < 1
    assert scales[0].high > 29
    assert "2 slides" in scales[0].range_from


def test_results_that_do_not_compare_share_no_scale(results, tmp_path):
    values = np.zeros((len(SPOTS), 1))
    other = made_up(tmp_path / "c.h5ad", SPOTS, values, model="another")
    with pytest.raises(ResultError, match="comes from another model"):
        colour_scale(results[0], 0, ScaleRequest(cohort=Cohort([other])))
    turned = replace(results[1], provenance={**results[1].provenance, "tta": "the mean of eight turns"})
    with pytest.raises(ResultError, match="only some were made with --tta"):
        colour_scale(results[0], 0, ScaleRequest(cohort=Cohort([results[0], turned])))
    cohort = Cohort(results)
    colour_scale(results[0], 0, ScaleRequest(cohort=cohort))
    with pytest.raises(ResultError, match="comes from another model"):
        colour_scale(other, 0, ScaleRequest(cohort=cohort))  # though the range of its gene is known by now
    other = made_up(tmp_path / "d.h5ad", SPOTS, values, genes=["H"])
    with pytest.raises(ResultError, match="holds no G0"):
        colour_scale(results[0], 0, ScaleRequest(cohort=Cohort([other])))


def test_limits_override_and_must_span_something(results):
    a, _ = results
    scale = colour_scale(a, 0, ScaleRequest("slide", low=-1.0))
    assert scale.low == -1.0
    assert scale.high == colour_scale(a, 0, ScaleRequest("slide")).high
    assert colour_scale(a, 0, ScaleRequest(low=2, high=3)).range_from == "the limits given"
    for limits in ((3, 2), (2, 2), (float("nan"), 2), (None, -5), (-1e308, 1e308), (1e9, 1e9 + 1)):
        with pytest.raises(UsageError, match=r"--vm(in|ax)"):
            colour_scale(a, 0, ScaleRequest("slide", *limits))


def test_a_gene_that_hardly_varies_is_not_stretched_to_full_contrast(tmp_path):
    flat = made_up(tmp_path / "flat.h5ad", SPOTS, np.full((len(SPOTS), 1), 5.0))
    scale = colour_scale(flat, 0, ScaleRequest("slide"))
    assert (scale.low, scale.high) == pytest.approx((5.0, 5.2))
    unread = made_up(tmp_path / "unread.h5ad", SPOTS, np.full((len(SPOTS), 1), np.nan))
    assert colour_scale(unread, 0, ScaleRequest("slide")).high > 0
