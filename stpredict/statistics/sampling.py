"""Draw some of many spots, equally many from each section as far as sections have them."""

from __future__ import annotations

import numpy as np

from stpredict.arrays import Int, Labels


def draw_evenly(label: Labels, most: int, seed: int = 0) -> Int:
    """Indices, in order, of at most `most` items: all, or else equally many of each label and all of rarer labels."""
    if len(label) <= most:
        return np.arange(len(label))
    _, group, n_items = np.unique(label, return_inverse=True, return_counts=True)
    rising = np.sort(n_items)
    # If the rarest labels give all that they have, the others share what is left.
    given = np.concatenate([[0], np.cumsum(rising)[:-1]])
    share = (most - given) // np.arange(len(rising), 0, -1)
    quota = int(share[np.argmax(share < rising)])
    order = np.random.default_rng(seed).permutation(len(label))
    of_group = order[np.argsort(group[order], kind="stable")]
    starts = np.cumsum(n_items) - n_items
    chosen = [of_group[start : start + min(n, quota)] for start, n in zip(starts, n_items, strict=True)]
    return np.sort(np.concatenate(chosen))
