"""Write a table of many results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict.commands.inputs import for_each, sum_up, unread
from stpredict.console import report
from stpredict.errors import UsageError
from stpredict.storage.files import demand_new, output_folders

if TYPE_CHECKING:
    from stpredict.result.frame import Origin


def summary_command(
    inputs: Sequence[Path], regions: Path | None, origin: Origin, out: Path, overwrite: bool, exclude: Sequence[str]
) -> int:
    """Write one table of many results to `out`, or to standard output where that is "-". Returns the exit code.

    Raises UsageError, before anything is written, for results that do not belong in one table.
    """
    from stpredict.result.cohort import (  # fmt: skip
        FACTS,
        Source,
        demand_comparable,
        find_regions,
        find_results,
        open_table,
        read_source,
        rows,
    )

    if out.is_dir():
        raise UsageError(f"-o {out}: is a folder; name a CSV file.")
    if str(out) != "-" and not overwrite:
        demand_new(out)
    unreadable: dict[Path, str] = {}
    paths = find_results(inputs, exclude, unreadable)
    sources: dict[Path, Source] = {}

    def check(path: Path) -> Iterator[Path]:
        sources[path] = read_source(path, sources.values())
        return iter(())

    alone = len(paths) == 1
    failures = unread(unreadable) + for_each(paths, check, alone)
    demand_comparable(list(sources.values()))
    areas = find_regions(regions, list(sources.values()))
    genes = list(dict.fromkeys(gene for source in sources.values() for gene in source.genes))
    if sources:
        with output_folders(out.parent), open_table(out, genes) as table:

            def add(path: Path) -> Iterator[Path]:
                found = rows(path, areas.get(path), genes, origin)
                for region in (row[FACTS.index("region")] for row in found if not row[FACTS.index("spots")]):
                    report(f"stpredict: {path}: none of its spots lies in the region {region!r}.")
                table.writerows(found)
                return iter(())

            failures += for_each(list(sources), add, alone)
    return sum_up(failures, len(paths) + len(unreadable), "results")
