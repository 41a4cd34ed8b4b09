"""Compare systems on measured sections."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpredict.commands.inputs import needs_training_extra
from stpredict.commands.train import describe_weights
from stpredict.console import report
from stpredict.data.panel import read_gene_list
from stpredict.errors import ResultError, UsageError
from stpredict.storage.files import output_folders

if TYPE_CHECKING:
    from stpredict.comparison.jobs import Job
    from stpredict.comparison.preparation import Prepared
    from stpredict.comparison.request import Comparison
    from stpredict.training.settings import Settings

WAIT_S = 0.2


def make_request(
    dataset: Path, out: Path, systems: Sequence[str], settings: Settings, *, protocol: str | None,
    min_depth: int | None, weights: Sequence[str], region_weights: Sequence[str],
    genes_file: Path | None, panel_rule: str | None, panel_size: int | None, **rest: Any,
) -> Comparison:  # fmt: skip
    """A call's request. Raises UsageError for options that contradict each other, or name something that is missing."""
    try:
        from stpredict.comparison.request import Comparison
        from stpredict.training.defaults import PANEL_RULE
        from stpredict.training.panels import Panel
        from stpredict.training.protocols import adopt_protocol
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    if not systems:
        raise UsageError("--arch names no system.")
    asked = [name for name in ("bin_um", "where", "species", "orthologs", "skip_broken") if rest[name]]
    asked += ["patch_format"] if rest["patch_format"] != "raw" else []
    if asked and dataset.suffix == ".h5":
        option = f"--{asked[0].replace('_', '-')}"
        raise UsageError(f"{option}: needs a folder of sections; a .tiles.h5 file is already cut.")
    if genes_file and (panel_size or panel_rule not in (None, PANEL_RULE)):
        raise UsageError("--genes-file names the panel; --panel and --panel-size choose one.")
    files = weights_by_system("--encoder-weights", weights, systems)
    of_regions = weights_by_system("--region-weights", region_weights, systems)
    panel = Panel(read_gene_list(genes_file) if genes_file else (), panel_size, rule=panel_rule)
    if protocol:
        settings, panel = adopt_protocol(protocol, settings, panel)
        settings = replace(settings, min_depth=min_depth or settings.min_depth)
    return Comparison(
        dataset, out, list(dict.fromkeys(systems)), settings=settings, panel=panel, protocol=protocol,
        weights=files, described={system: describe_weights(path, None) for system, path in files.items()},
        region_weights=of_regions,
        region_described={system: describe_weights(path, None) for system, path in of_regions.items()}, **rest,
    )  # fmt: skip


def weights_by_system(option: str, given: Sequence[str], systems: Sequence[str]) -> dict[str, Path]:
    """The file that ARCH=FILE gives a system. Raises UsageError for a system that takes none, or is not compared."""
    from stpredict.networks import has_trunk, reads_tiles

    files = {}
    for text in given:
        named = [system for system in systems if text.startswith(f"{system}=")]  # a system's own options contain "="
        system = max(named, key=len, default=text.partition("=")[0])
        name = text.removeprefix(f"{system}=")
        if name == text or not Path(name).is_file():
            raise UsageError(f"{option} {text}: give ARCH=FILE, a system and an existing file.")
        if system not in systems or not (reads_tiles(system) or (option == "--encoder-weights" and has_trunk(system))):
            raise UsageError(f"{option} {text}: {system} is not compared, or reads no such weights.")
        files[system] = Path(name)
    return files


def compare_command(request: Comparison, cluster: str | None, overwrite: bool) -> int:
    """Train and test all systems, print the table and the paths of the files written. Returns the exit code.

    A system that fails costs only its row, and makes the exit code 1.
    """
    try:
        from stpredict.comparison.jobs import all_jobs, do_all, left
        from stpredict.comparison.preparation import discard, prepare
    except ModuleNotFoundError as error:
        raise needs_training_extra(error) from error

    if cluster:
        from stpredict.batch.cluster import connected

        with connected(cluster):
            pass  # a call whose scheduler is missing changes nothing
    with output_folders(request.out):
        if overwrite:
            discard(request.out)
        prepared = prepare(request, report)
        jobs = all_jobs(prepared)
        if cluster:
            from stpredict.comparison.cluster import do_all_on_cluster

            do_all_on_cluster(prepared, jobs, cluster, report)
        else:
            do_all(prepared, jobs, report)
        if others := len(list(left(jobs))):
            report(f"other calls run {others} of {len(jobs)} jobs; the last call to finish completes the table")
        return tell(prepared, jobs)


def tell(prepared: Prepared, jobs: list[Job]) -> int:
    """Print and write all results so far. If several calls run at once, the last to finish writes the whole table."""
    from stpredict.comparison.preparation import BROKEN, left_out
    from stpredict.comparison.report import show, write
    from stpredict.comparison.summary import summarise
    from stpredict.data.reading import about_left_out
    from stpredict.prediction.leases import take_lease

    folder: Path = prepared.request.out
    while not (lease := take_lease(folder / "writing.lease")):
        time.sleep(WAIT_S)
    try:
        summary = summarise(prepared, jobs)
        for line in show(summary):
            print(line)
        for path in write(summary, folder):
            print(path)
    finally:
        lease.release()
    broken = left_out(prepared.request)
    if broken:
        report(about_left_out(broken, folder / BROKEN))
    return ResultError.exit_code if broken or any(job.status() == "failed" for job in jobs) else 0
