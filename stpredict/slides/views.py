"""Views of a spot: images of one size with fields 1, 2, 4 ... times as wide, all around the same centre.

A network that looks at one view takes patches P x P x 3, others stacks of V x P x P x 3, the narrowest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stpredict.arrays import UInt8

Views = tuple[int, ...]
ONE_VIEW: Views = (1,)
#: A wider field would cover most of a slide.
WIDEST = 16


def views_of(parameters: dict[str, Any]) -> Views:
    """The views that a network looks at, from its parameters on a card."""
    return tuple(parameters.get("views", ONE_VIEW))


def own_views(patches: UInt8, views: Views) -> UInt8:
    """The spots' own patches, N x P x P x 3, from patches that may have wider views, too."""
    return patches if views == ONE_VIEW else patches[:, 0]


def views_in_words(views: Views) -> str:
    """The words after "224 px patches" if there is more than one view."""
    return "" if views == ONE_VIEW else f", and fields {' and '.join(map(str, views[1:]))} times as wide"


def views_fit(views: Views, patch_px: int) -> bool:
    """Are the views valid: first the patch itself, each wider than the one before, all around its centre?"""
    return (
        all(type(factor) is int for factor in views)
        and views[:1] == ONE_VIEW
        and list(views) == sorted(set(views))
        and views[-1] <= WIDEST
        and all(patch_px * (factor - 1) % 2 == 0 for factor in views)
    )


def patch_shape(patch_px: int, views: Views = ONE_VIEW) -> tuple[int, ...]:
    """Shape of the patch, or of the stack of views, that is cut around one spot."""
    image = (patch_px, patch_px, 3)
    return image if views == ONE_VIEW else (len(views), *image)


def margin_px(patch_px: int, views: Views) -> int:
    """How far the widest view reaches beyond the patch, on each side."""
    return patch_px * (max(views) - 1) // 2


def first_views(patches: UInt8) -> UInt8:
    """The narrowest view of patches or stacks of them: n x P x P x 3."""
    return patches if patches.ndim == 4 else patches[:, 0]


def cut_views(
    region: UInt8, corners: Sequence[tuple[int, int]], patch_px: int, views: Views, out: UInt8 | None = None
) -> list[UInt8]:
    """Cut stacks, V x P x P x 3 each, at the patches' top-left `corners` from a region that holds their widest view.

    A view of k times the field averages squares of k x k pixels; halves are rounded up. With `out`, n x V x P x P x 3,
    the stacks are written there.
    """
    image = Image.fromarray(region)
    made = np.empty((len(corners), *patch_shape(patch_px, views)), np.uint8) if out is None else out
    for stack, (x, y) in zip(made, corners, strict=True):
        for view, factor in zip(stack, views, strict=True):
            left, top, side = x - margin_px(patch_px, (factor,)), y - margin_px(patch_px, (factor,)), patch_px * factor
            view[:] = image.reduce(factor, (left, top, left + side, top + side))
    return list(made)
