"""Look around the spots of sections in as many processes as train together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stpredict.console import Report
from stpredict.data.section import Section
from stpredict.data.tiles import Tiles
from stpredict.engines.engine import TwoPasses
from stpredict.prediction.surroundings import Surroundings, look_around_sections
from stpredict.training.processes import wait_for_all, world_and_rank


def look_around_together(
    sections: Sequence[Section], tiles: Tiles, passes: TwoPasses, folder: Path, report: Report
) -> dict[str, Surroundings]:
    """As `look_around_sections`: each process describes its part of the sections, and all get what all made.

    Raises DatasetError for sections whose slides are missing.
    """
    world, rank = world_and_rank()
    if world > 1:
        look_around_sections(sections, tiles, passes, tiles.pitch_um, folder, report, slice(rank, None, world))
        wait_for_all()
    return look_around_sections(sections, tiles, passes, tiles.pitch_um, folder, report)
