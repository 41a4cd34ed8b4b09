from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stpredict.statistics.sampling import draw_evenly


@settings(deadline=None)  # machines may be busy
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(6, 120))
def test_labels_are_drawn_alike_and_rare_ones_whole(n_items, most):
    label = np.repeat(np.arange(len(n_items)), n_items)
    drawn = draw_evenly(label, most)
    assert (np.diff(drawn) > 0).all()
    assert len(drawn) == len(label) or most - len(n_items) < len(drawn) <= most
    given_of = np.bincount(label[drawn], minlength=len(n_items))
    quota = given_of.max()
    np.testing.assert_array_equal(given_of, np.minimum(n_items, quota))
