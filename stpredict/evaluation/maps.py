"""Choose the genes that an evaluation shows as maps, and draw the tissue below them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stpredict.arrays import Float, Int, Real
from stpredict.data.tiles import Tiles
from stpredict.evaluation.measured import Measured
from stpredict.statistics.masks import measured_by_section
from stpredict.statistics.metrics import mean_of_known, pearson_residuals
from stpredict.statistics.spatial import spot_distance

#: How many genes of each kind are shown.
SHOWN = 2
PICTURE_PX = 480
QUALITY = 80


@dataclass(frozen=True)
class GeneMap:
    """One gene, in the section whose correlation is nearest to the gene's mean over sections that measured it.

    `centres` (n x 2) are level-0 pixels, `measured` Pearson residuals, `predicted` expression.
    """

    kind: str  # "best" | "middling" | "worst"
    gene: str
    section: str
    sections: str  # the sections that measured it, in words
    correlation: float
    in_section: float
    centres: Float
    measured: Float
    predicted: Float


def choose_maps(genes: list[str], predicted: Real, by_section: Float, measured: Measured) -> list[GeneMap]:
    """The two genes each of highest, middle and lowest depth-controlled correlation; all genes if there are few.

    `by_section` are these correlations in each section, sections (sorted) x genes.
    """
    names = np.unique(measured.section)
    correlation = mean_of_known(by_section)
    order = [int(i) for i in np.argsort(-correlation, kind="stable") if np.isfinite(correlation[i])]
    middle = max(len(order) // 2 - SHOWN // 2, 0)
    kinds = {"best": order[:SHOWN], "worst": order[-SHOWN:], "middling": order[middle : middle + SHOWN]}
    chosen = {gene: kind for kind in ("middling", "worst", "best") for gene in kinds[kind]}
    sections = measured_by_section(measured.counts, measured.section).sum(axis=0)
    maps = []
    for gene in sorted(chosen, key=order.index):
        far = abs(by_section[:, gene] - correlation[gene])
        own = int(np.nanargmin(far))
        rows = np.flatnonzero(measured.section == names[own])
        maps.append(GeneMap(
            chosen[gene], genes[gene], str(names[own]), _in_words(sections[gene], len(names)),
            float(correlation[gene]), float(by_section[own, gene]), measured.centres[rows],
            pearson_residuals(measured.counts[rows, [gene]][:, None], measured.depth[rows])[:, 0],
            predicted[rows, gene].astype(float),
        ))  # fmt: skip
    return maps


def _in_words(measured: int, n_sections: int) -> str:
    return "all sections" if measured == n_sections else f"the {measured} of {n_sections} sections that measured it"


def picture_of_patches(tiles: Tiles, index: Int) -> bytes:
    """A WebP of one section, with each spot's patch in its place, in the frame that `map_frame` gives.

    Between the patches it is transparent, so that it does not glare on a dark page.
    """
    centres = tiles.centres[index]
    (left, top), (width, height), pitch = map_frame(centres)
    scale = PICTURE_PX / max(width, height)
    side = max(1, round(pitch * scale * tiles.patch_px * tiles.mpp / tiles.pitch_um))
    picture = Image.new("RGBA", (max(1, round(width * scale)), max(1, round(height * scale))))
    for i, (x, y) in zip(index, (centres - (left, top)) * scale, strict=True):
        patch = Image.fromarray(tiles.read_patch(i)).resize((side, side), Image.Resampling.BOX)
        picture.paste(patch, (round(x - side / 2), round(y - side / 2)))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY)
    return stream.getvalue()


def map_frame(centres: Float) -> tuple[Float, Float, float]:
    """Top left corner and size of a map of spots, with a margin of one pitch, and that pitch; all in level-0 px."""
    pitch = spot_distance(centres)
    low, high = centres.min(axis=0) - pitch, centres.max(axis=0) + pitch
    return low, high - low, pitch
