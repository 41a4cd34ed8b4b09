"""One call on several GPUs of a machine: a child process for each, which predicts one slide at a time.

Those for which there is no slide help with that of another one, shard by shard, as workers of a cluster do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from stpredict.batch.child import Parent, child_process, free_lease
from stpredict.batch.jobs import Outcome
from stpredict.batch.processes import Death, Work, exit_in_words, find_the_guilty, model_of
from stpredict.console import log, report, telling
from stpredict.errors import StpredictError
from stpredict.prediction.job import Job
from stpredict.prediction.request import SlideProgress, warn_of_unpredicted_genes
from stpredict.prediction.shards import SHARD_SPOTS

#: So many spots have to be left for each that is at a slide: to open it and to build the engine takes time, too.
WORTH_IT = 2 * SHARD_SPOTS
#: A device on which so many processes died gets no other.
MAX_DEATHS = 3
LOOK_EVERY_S = 1.0


@dataclass
class Child:
    """The process of one device, its two ends, and what it is at."""

    device: str
    hear: Connection
    orders: Connection
    process: BaseProcess
    held: ExitStack
    job: Job | None = None
    helping: bool = False
    begun: bool = False

    def order(self, job: Job, helping: bool = False) -> None:
        self.job, self.helping, self.begun = job, helping, False
        with suppress(BrokenPipeError):  # it died just now, which is found out in a moment
            self.orders.send((job, helping))


@dataclass
class Call:
    """What is left to do: slides, those that others were at and are tried again, spots left in those under way."""

    due: list[Job]
    again: list[Job] = field(default_factory=list)
    tried_twice: set[Job] = field(default_factory=set)
    left: dict[Job, int] = field(default_factory=dict)
    asked: set[tuple[Job, str]] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)


def predict_on_devices(
    jobs: Sequence[Job], work: Work, devices: Sequence[str], progress: SlideProgress
) -> Generator[Outcome, None, None]:
    """Predict slides on devices, with a share of the threads each. Raises what predict_in_children does."""
    warn_of_unpredicted_genes(model_of(work), work.request.genes, report)
    yield from find_the_guilty(jobs, partial(_on_devices, work=work, devices=devices, progress=progress))


def work_on(device: str, work: Work, n_devices: int) -> Work:
    """One device's part of the work. What building an engine saves is counted over its part of the slides."""
    engine = work.request.engine
    threads = max(1, engine.threads // n_devices)
    n_slides = max(-(-work.n_slides // n_devices), min(work.n_slides, 2))  # of one alone, errors are the call's
    request = replace(work.request, engine=replace(engine, device=device, threads=threads))
    return replace(work, request=request, n_slides=n_slides)


def _on_devices(
    jobs: Sequence[Job], work: Work, devices: Sequence[str], progress: SlideProgress
) -> Generator[Outcome | Death, None, None]:
    call = Call(list(jobs))
    with ExitStack() as stack:
        children = [_start(device, work, len(devices), stack) for device in devices]
        while call.due or call.again or any(child.job and not child.helping for child in children):
            _give_orders(children, call)
            ready = wait([end for child in children for end in (child.hear, child.process.sentinel)], LOOK_EVERY_S)
            for child in [each for each in children if each.hear in ready or each.process.sentinel in ready]:
                told = _hear(child)
                if told is None:
                    children.remove(child)
                    yield from _mourn(child, call)
                    if call.deaths[child.device] < MAX_DEATHS:
                        children.append(_start(child.device, work, len(devices), stack))
                    elif not children:
                        how = exit_in_words(child.process.exitcode)
                        raise StpredictError(f"--device {child.device}: each process there {how}.")
                elif outcome := _listen(child, told, call, progress):
                    yield outcome


def _start(device: str, work: Work, n_devices: int, stack: ExitStack) -> Child:
    held = stack.enter_context(ExitStack())
    theirs, orders = get_context("spawn").Pipe(duplex=False)
    hear, process = held.enter_context(child_process(_serve, theirs, work_on(device, work, n_devices)))
    theirs.close()
    held.callback(orders.close)  # which is how a child that waits for orders learns that there are no more
    return Child(device, hear, orders, process, held)


def _give_orders(children: Sequence[Child], call: Call) -> None:
    """A slide to each child that is at nothing or, where there is none, another's that help is worth it with."""
    for child in children:
        if child.job is not None:
            continue
        if not call.due and not any(other.job and not other.helping for other in children):
            call.due, call.again = call.again, []
        if call.due:
            child.order(call.due.pop(0))
        elif job := _in_need(child.device, children, call):
            call.asked.add((job, child.device))
            child.order(job, helping=True)


def _in_need(device: str, children: Collection[Child], call: Call) -> Job | None:
    """The slide of which most is left for each that is at it, if that is much; it is asked but once for each device."""
    at_it = Counter(child.job for child in children if child.job)
    shares = {
        job: call.left.get(job, 0) / (1 + count) for job, count in at_it.items() if (job, device) not in call.asked
    }
    best = max(shares, key=lambda job: shares[job], default=None)
    return best if best and shares[best] >= WORTH_IT else None


def _hear(child: Child) -> tuple[Any, ...] | None:
    """What a child says; None if it is dead and has said all."""
    try:
        return tuple(child.hear.recv()) if child.hear.poll() or child.process.is_alive() else None
    except (EOFError, OSError):
        return None


def _listen(child: Child, told: tuple[Any, ...], call: Call, progress: SlideProgress) -> Outcome | None:
    """Heed what a child says. Returns the outcome of a slide, if it is that; raises what ends the call."""
    kind, *content = told
    if kind == "progress":
        job, done, total = content
        child.begun, call.left[job] = True, total - done
        progress(job, done, total)
    elif kind == "log":
        event, line, facts = content
        log(event, line, **facts)
    elif kind == "helped":
        child.job = None
    elif kind == "outcome":
        outcome: Outcome = content[0]
        child.job = None
        call.left.pop(outcome.job, None)
        if outcome.status == "elsewhere" and outcome.job not in call.tried_twice:
            call.tried_twice.add(outcome.job)
            call.again.append(outcome.job)
            return None
        return outcome
    else:
        raise content[0]
    return None


def _mourn(child: Child, call: Call) -> Iterator[Death]:
    """What comes of it that a child died: of a helper nothing but a warning, as who has the slide does its shards."""
    child.held.close()
    call.deaths[child.device] += 1
    how, job = exit_in_words(child.process.exitcode), child.job
    if job is None or child.helping:
        log("warning", f"--device {child.device}: the process there {how}")
    elif child.begun:
        free_lease(job)
        yield Death(job, how)
    else:
        raise StpredictError(f"the process that predicts on {child.device} {how} before it came to a slide.")


def _serve(tell: Connection, alive: Connection, orders: Connection, work: Work) -> None:
    """What a child does: slides, and help with others', until there are no more orders."""
    parent = Parent(tell, alive)
    with parent.working():
        from stpredict.batch.shared_slide import help_slide
        from stpredict.batch.slides import Warm, as_ours, predict_each

        warm = Warm(model_of(work))
        while True:
            try:
                job, helping = orders.recv()
            except (EOFError, OSError):
                return
            if not helping:
                for outcome in predict_each([job], warm, work.request, work.n_slides, report, parent.progress):
                    parent.send("outcome", outcome)
                continue
            try:
                with telling(lambda *_: None):  # who has the slide tells of it
                    help_slide(job, warm, work.request, parent.heed)
            except Exception as error:  # noqa: BLE001 (the slide goes on without)
                problem = as_ours(error, job, alone=False)
                log("warning", f"{job.shown.name}: {work.request.engine.device} cannot help with it: {problem}")
            parent.send("helped")
