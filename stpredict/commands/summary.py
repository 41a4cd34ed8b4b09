"""Write a table of many results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict.commands.as_json import print_json
from stpredict.commands.inputs import for_each, sum_up, unread
from stpredict.console import report
from stpredict.data.panel import match_genes
from stpredict.errors import UsageError
from stpredict.result.cohort import (
    FACTS,
    STATISTICS,
    Cell,
    Source,
    demand_comparable,
    find_regions,
    find_results,
    open_table,
    read_source,
    rows,
)
from stpredict.storage.files import demand_new, output_folders

if TYPE_CHECKING:
    from stpredict.result.frame import Origin


def summary_command(
    inputs: Sequence[Path], regions: Path | None, origin: Origin, out: Path, overwrite: bool, exclude: Sequence[str],
    chosen: Sequence[str] = (), as_json: bool = False,
) -> int:  # fmt: skip
    """Write one table of many results to `out`, or to standard output if `out` is "-". Returns the exit code.

    The table holds all genes, or the `chosen` ones. Raises UsageError, before it writes anything, for results that
    do not belong in one table, and for genes that no result holds.
    """
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
    held = list(dict.fromkeys(gene for source in sources.values() for gene in source.genes))
    genes = [held[i] for i in match_genes(chosen, held, "genes of these results")] if chosen else held
    if sources:
        with output_folders(out.parent), _json_table(genes) if as_json else open_table(out, genes) as table:

            def add(path: Path) -> Iterator[Path]:
                found = rows(path, areas.get(path), genes, origin)
                for region in (row[FACTS.index("region")] for row in found if not row[FACTS.index("spots")]):
                    report(f"stpredict: {path}: none of its spots lies in the region {region!r}.")
                table.writerows(found)
                return iter(())

            failures += for_each(list(sources), add, alone)
    return sum_up(failures, len(paths) + len(unreadable), "results")


@contextmanager
def _json_table(genes: Sequence[str]) -> Iterator[_Rows]:
    """Collect rows and print them as JSON in the end: the facts of each, and its genes' statistics by name."""
    table = _Rows([])
    yield table
    width = len(STATISTICS)
    print_json([
        {
            **dict(zip(FACTS, row, strict=False)),
            "genes": {
                gene: dict(zip(STATISTICS, row[len(FACTS) + i * width :], strict=False)) for i, gene in enumerate(genes)
            },
        }
        for row in table.rows
    ])  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Takes rows as a CSV writer does."""

    rows: list[list[Cell]]

    def writerows(self, rows: Sequence[list[Cell]]) -> None:
        self.rows.extend(rows)
