"""Slides predicted in other processes, which a slide may kill: what those need, and which slide is to blame."""

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
    """A process died at a slide, and perhaps at others, too. `how` says how, as "was ended by signal 11"."""

    job: Job
    how: str


Run = Callable[[Sequence[Job]], Generator[Outcome | Death, None, None]]


def find_the_guilty(jobs: Sequence[Job], run: Run) -> Iterator[Outcome]:
    """The outcomes of slides that `run` gives to processes; it goes on after one of these dies.

    Slides that were under way when a process died are tried again one by one. If a process dies of one then, it failed.
    """
    under_way: list[Job] = []
    with closing(run(jobs)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Death):
                under_way.append(outcome.job)
                slide = outcome.job.shown
                log("warning", f"{slide.name}: a process that was predicting it {outcome.how}; it is tried again alone")
            else:
                yield outcome
    for job in under_way:
        with closing(run([job])) as outcomes:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, Outcome) else _failed(outcome)


def model_of(work: Work) -> Model:
    """The model, by its path or, if that is missing, by its name. Raises ModelFileError if there is none or another."""
    path = work.model if work.model.is_file() else list_models().get(work.model.stem, work.model)
    model = load_model(path)
    if model.sha256 != work.sha256:
        raise ModelFileError(f"{path}: not the model of this name that the call began with.")
    return model


def sendable(error: Exception) -> Exception:
    """The error in a form that another process can read, with its traceback for --debug."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (a library's error may fail in any way when it is pickled)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def exit_in_words(code: int | None) -> str:
    """How a process ended, from its exit code in `multiprocessing`, where a signal is negative."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"was ended by signal {-code}{name}"


def _failed(death: Death) -> Outcome:
    name, reason = death.job.shown.name, "the slide may be damaged, or need more memory than there is"
    return Outcome(death.job, "failed", error=SlideError(f"{name}: each process that began it {death.how}; {reason}."))
