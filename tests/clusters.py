"""Clusters of this machine for tests, which end for certain."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
from distributed import LocalCluster

#: How long workers may take to stop.
STOP_S = 30


@contextmanager
def local_cluster(n_workers: int, threads_per_worker: int, folder: Path) -> Iterator[str]:
    """The address of a scheduler whose workers keep their files in a `folder`.

    Without a timeout, dask waits without end for a worker that misses the word to stop, as one may that began anew.
    """
    # A slide that loses its worker once is tried by itself; four times would take a test too long.
    settings = {"distributed.scheduler.allowed-failures": 0, "temporary-directory": str(folder)}
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=n_workers, threads_per_worker=threads_per_worker, dashboard_address=":0", memory_limit=None
        )
        try:
            yield cluster.scheduler_address
        finally:
            try:
                cluster.close(timeout=STOP_S)
            except TimeoutError:
                for process in multiprocessing.active_children():
                    if "Nanny" in process.name:  # as dask calls workers' processes
                        process.kill()
                with suppress(TimeoutError):
                    cluster.close(timeout=STOP_S)
