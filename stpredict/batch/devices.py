"""One call on several GPUs of a machine: each has a child process, which predicts one slide at a time.

A child without a slide helps with that of another child, shard by shard, as workers of a cluster do.
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

#: Help is worth it if so many spots are left per process at a slide: opening it and building an engine take time.
WORTH_IT = 2 * SHARD_SPOTS
#: After so many deaths of its processes, a device gets no new one.
MAX_DEATHS = 3
LOOK_EVERY_S = 1.0


@dataclass
class Child:
    """The process of one device, this side's ends of its two pipes, and its present task."""

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
        with suppress(BrokenPipeError):  # it died just now, which soon shows
            self.orders.send((job, helping))


@dataclass
class Call:
    """The work left: slides, slides to try again because others held them, and spots left in those under way."""

    due: list[Job]
    again: list[Job] = field(default_factory=list)
    tried_twice: set[Job] = field(default_factory=set)
    left: dict[Job, int] = field(default_factory=dict)
    asked: set[tuple[Job, str]] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)


def predict_on_devices(
    jobs: Sequence[Job], work: Work, devices: Sequence[str], progress: SlideProgress
) -> Generator[Outcome, None, None]:
    """Predict slides on devices; each gets a share of the threads. Raises as predict_in_children does."""
    warn_of_unpredicted_genes(model_of(work), work.request.genes, report)
    yield from find_the_guilty(jobs, partial(_on_devices, work=work, devices=devices, progress=progress))


def work_on(device: str, work: Work, n_devices: int) -> Work:
    """One device's part of the work. Its part of the slides decides whether building an engine pays."""
    engine = work.request.engine
    threads = max(1, engine.threads // n_devices)
    n_slides = max(-(-work.n_slides // n_devices), min(work.n_slides, 2))  # a lone slide's errors end the call
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
    held.callback(orders.close)  # tells a waiting child that there are no more orders
    return Child(device, hear, orders, process, held)


def _give_orders(children: Sequence[Child], call: Call) -> None:
    """Give each idle child a slide. If none is left, let it help with another child's, if that is worth it."""
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
    """The slide with most spots left per process, if that is enough; each device is asked only once per slide."""
    at_it = Counter(child.job for child in children if child.job)
    shares = {
        job: call.left.get(job, 0) / (1 + count) for job, count in at_it.items() if (job, device) not in call.asked
    }
    best = max(shares, key=lambda job: shares[job], default=None)
    return best if best and shares[best] >= WORTH_IT else None


def _hear(child: Child) -> tuple[Any, ...] | None:
    """The next message of a child; None if it is dead and no message is left."""
    try:
        return tuple(child.hear.recv()) if child.hear.poll() or child.process.is_alive() else None
    except (EOFError, OSError):
        return None


def _listen(child: Child, told: tuple[Any, ...], call: Call, progress: SlideProgress) -> Outcome | None:
    """Handle a child's message. Returns the outcome of a slide, if it is one; raises errors that end the call."""
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
    """Handle a child's death. That of a helper is only a warning: the slide's own process predicts its shards."""
    child.held.close()
    call.deaths[child.device] += 1
    how, job = exit_in_words(child.process.exitcode), child.job
    if job is None or child.helping:
        log("warning", f"--device {child.device}: the process there {how}")
    elif child.begun:
        free_lease(job)
        yield Death(job, how)
    else:
        raise StpredictError(f"the process that predicts on {child.device} {how} before it began a slide.")


def _serve(tell: Connection, alive: Connection, orders: Connection, work: Work) -> None:
    """Run a child: predict slides, and help with those of others, until there are no more orders."""
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
                with telling(lambda *_: None):  # the process that predicts the slide reports this
                    help_slide(job, warm, work.request, parent.heed)
            except Exception as error:  # noqa: BLE001 (the slide goes on without help)
                problem = as_ours(error, job, alone=False)
                log("warning", f"{job.shown.name}: {work.request.engine.device} cannot help with it: {problem}")
            parent.send("helped")
