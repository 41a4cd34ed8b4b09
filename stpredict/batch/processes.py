"""Slides that are predicted in processes of their own, which may die of one: what they are told, who is to blame."""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stpredict.batch.jobs import Outcome
from stpredict.console import log
from stpredict.errors import ModelFileError, SlideError
from stpredict.model.file import Model, list_models, load_model
from stpredict.prediction.job import Job
from stpredict.prediction.request import Request


@dataclass(frozen=True)
class Work:
    """What a process needs to know to predict some of `n_slides` slides."""

    model: Path
    sha256: str
    request: Request
    n_slides: int


@dataclass(frozen=True)
class Death:
    """A process died while it was at a slide, and maybe at others too; it "was ended by signal 11", as `how` says."""

    job: Job
    how: str


Run = Callable[[Sequence[Job]], Generator[Outcome | Death, None, None]]


def find_the_guilty(jobs: Sequence[Job], run: Run) -> Iterator[Outcome]:
    """What becomes of the slides that processes are given by `run`, which goes on after one of them dies.

    Slides that were under way when a process died are tried again one by one: of which one dies then, that one failed.
    """
    under_way: list[Job] = []
    with closing(run(jobs)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Death):
                under_way.append(outcome.job)
                slide = outcome.job.shown
                log("warning", f"{slide.name}: a process that was at it {outcome.how}; it is tried again alone")
            else:
                yield outcome
    for job in under_way:
        with closing(run([job])) as outcomes:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, Outcome) else _failed(outcome)


def model_of(work: Work) -> Model:
    """The model, by its path or, where that is not there, as installed. Raises ModelFileError for none or another."""
    path = work.model if work.model.is_file() else list_models().get(work.model.stem, work.model)
    model = load_model(path)
    if model.sha256 != work.sha256:
        raise ModelFileError(f"{path}: another model of this name than the one that the call began with.")
    return model


def sendable(error: Exception) -> Exception:
    """An error that another process can read, with where it came from for --debug."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever a library's error does when it is pickled)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def exit_in_words(code: int | None) -> str:
    """How a process ended, by its exit code: that of `multiprocessing`, in which a signal is negative."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"was ended by signal {-code}{name}"


def _failed(death: Death) -> Outcome:
    name, reason = death.job.shown.name, "the slide may be damaged, or need more memory than there is"
    return Outcome(death.job, "failed", error=SlideError(f"{name}: each process that was at it {death.how}; {reason}."))
