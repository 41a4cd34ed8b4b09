"""Many slides on this machine: a child process predicts them. If a slide kills it, another child goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from stpredict.batch.jobs import Outcome
from stpredict.batch.processes import Death, Work, exit_in_words, find_the_guilty, model_of, sendable
from stpredict.console import log, report, telling
from stpredict.errors import StpredictError
from stpredict.prediction.job import Job
from stpredict.prediction.leases import take_lease
from stpredict.prediction.request import SlideProgress, warn_of_unpredicted_genes
from stpredict.search_path import working_folder_left_out

#: How long a child that is told to stop may take to release what it holds.
GRACE_S = 10.0
#: Shortest time between two reports of a child's progress.
PROGRESS_EVERY_S = 0.2
TERMINATED = 143


def predict_in_children(jobs: Sequence[Job], work: Work, progress: SlideProgress) -> Iterator[Outcome]:
    """Predict slide after slide. Raises as predict_each does, and StpredictError if a child dies before any slide."""
    return find_the_guilty(jobs, partial(_in_children, work=work, progress=progress))


def _in_children(jobs: Sequence[Job], work: Work, progress: SlideProgress) -> Generator[Outcome | Death, None, None]:
    left = dict.fromkeys(jobs)
    while left:
        begun: set[Job] = set()
        try:
            with child_process(_predict, list(left), work) as (hear, process):
                for kind, *content in _messages(hear, process):
                    if kind == "progress":
                        begun.add(content[0])
                        progress(*content)
                    elif kind == "log":
                        event, line, facts = content
                        log(event, line, **facts)
                    elif kind == "outcome":
                        del left[content[0].job]
                        yield content[0]
                    else:
                        raise content[0]
        finally:
            under_way = [job for job in left if job in begun]
            for job in under_way:
                free_lease(job)
        how = exit_in_words(process.exitcode)
        if left and not under_way:
            raise StpredictError(f"the process that predicts {how} before it began a slide.")
        for job in under_way:
            del left[job]
            yield Death(job, how)


def free_lease(job: Job) -> None:
    """Remove the lease of a dead child at once; else it would stay for good."""
    if lease := take_lease(job.lease):
        lease.release()


@contextmanager
def child_process(what: Callable[..., None], *arguments: object) -> Iterator[tuple[Connection, BaseProcess]]:
    """A child process that runs `what`, and the pipe to hear it; it ends with the context or with this process.

    `what` is called with two ends of pipes, those of `Parent`, and the arguments.
    """
    spawn = multiprocessing.get_context("spawn")
    hear, tell = spawn.Pipe(duplex=False)
    alive, ours = spawn.Pipe(duplex=False)  # carries no messages; it closes when this process ends for any reason
    process = spawn.Process(target=what, args=(tell, alive, *arguments), daemon=True)
    with _ignoring_ctrl_c(), working_folder_left_out():
        process.start()
    tell.close()
    alive.close()
    try:
        yield hear, process
    except BaseException:
        process.terminate()
        raise
    finally:
        hear.close()
        process.join(GRACE_S)
        process.kill()
        process.join()
        ours.close()


def _messages(hear: Connection, process: BaseProcess) -> Iterator[tuple[Any, ...]]:
    """The messages of a child until it ends for any reason."""
    while True:
        ready = wait([hear, process.sentinel], timeout=1.0)  # Windows heeds Ctrl-C only between waits
        if hear in ready:
            try:
                yield hear.recv()
            except (EOFError, OSError):  # the child closed the pipe or died, perhaps within a message
                return
        elif ready:
            return


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Children that start in this context ignore Ctrl-C from the beginning, so that only this process answers it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Parent:
    """A child's view of the process that it works for: `tell` sends to that process; `alive` closes when it ends."""

    tell: Connection
    alive: Connection
    told_to_stop: threading.Event = field(default_factory=threading.Event)
    one_by_one: threading.Lock = field(default_factory=threading.Lock)
    told_last: float = 0.0

    def send(self, *message: object) -> None:
        with self.one_by_one:  # slides are prepared in a thread
            self.tell.send(message)

    def heed(self, _done: int = 0, _total: int = 0) -> None:
        """End here if the parent asks for it, and release slides and leases in order."""
        if self.told_to_stop.is_set():
            sys.exit(TERMINATED)

    def progress(self, job: Job, done: int, total: int) -> None:
        self.heed()
        if 0 < done < total and time.monotonic() - self.told_last < PROGRESS_EVERY_S:
            return
        self.told_last = time.monotonic()
        self.send("progress", job, done, total)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The context of a child's work. Sends the child's log, and an error that ends it, to the parent."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows does not pass this on to children
        signal.signal(signal.SIGTERM, lambda *_: self.told_to_stop.set())  # an exception could strike anywhere
        threading.Thread(target=_end_with, args=(self.alive,), daemon=True).start()
        with suppress(BrokenPipeError), telling(partial(self.send, "log")):
            try:
                yield
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001 (raised again in the parent)
                self.send("error", sendable(error))


def _predict(tell: Connection, alive: Connection, jobs: Sequence[Job], work: Work) -> None:
    """Predict slides in the child."""
    parent = Parent(tell, alive)
    with parent.working():
        from stpredict.batch.slides import Warm, predict_each

        model = model_of(work)
        is_first_child = len(jobs) == work.n_slides
        judge = partial(warn_of_unpredicted_genes, model, work.request.genes, report) if is_first_child else None
        for outcome in predict_each(jobs, Warm(model), work.request, work.n_slides, report, parent.progress, judge):
            parent.send("outcome", outcome)


def _end_with(alive: Connection) -> None:
    """End this process as soon as its parent is gone."""
    with suppress(EOFError, OSError):
        alive.recv()
    os._exit(TERMINATED)
