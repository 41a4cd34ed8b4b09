"""`predict` and its dry run: many slides, their results, what failed, where the time went."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from stpredict.cards import reliable_genes
from stpredict.commands.inputs import Failure, for_each, sum_up
from stpredict.commands.render import render_one
from stpredict.console import progress_of_spots, report
from stpredict.errors import UsageError
from stpredict.files import atomic_path
from stpredict.prediction.batch import Outcome, plan_slides, predict_slides
from stpredict.prediction.jobs import find_jobs
from stpredict.prediction.one_slide import Request
from stpredict.rendering.table import plain_cell
from stpredict.weights import Model, find_model, load_model

#: What `--genes` may say instead of names.
RELIABLE = "reliable"
#: Exit code where all is well but for slides that other calls are at (EX_TEMPFAIL of sysexits.h).
LEFT_TO_ANOTHER = 75
FAILURE_COLUMNS = ("slide", "reason")


def predict_command(
    slides: Sequence[str], model_name: str, request: Request, out: Path, render: bool, verbose: bool
) -> int:
    """Predict slides and print the results' paths. Returns the exit code.

    Where there are several, those that failed are also listed in OUT/failures.csv.
    """
    from stpredict.rendering.styles import MAX_GENES_BY_DEFAULT, RenderRequest

    model = load_model(find_model(model_name))
    request = replace(request, genes=chosen_genes(request.genes, model))
    if render and not request.genes and len(model.panel) > MAX_GENES_BY_DEFAULT:
        raise UsageError(f"--render draws up to {MAX_GENES_BY_DEFAULT} genes; name those to predict with --genes.")
    jobs = find_jobs(slides, out, report)
    failures: list[Failure] = []
    n_elsewhere = 0
    with progress_of_spots() as (progress, say):
        for outcome in predict_slides(jobs, model, request, say, progress):
            slide, result = outcome.job.slide, outcome.job.result
            if outcome.status == "failed":
                failures.append((slide, str(outcome.error)))
                say(f"stpredict: {outcome.error}")
                continue
            if outcome.status == "elsewhere":
                n_elsewhere += 1
                say(f"{slide}: another process is predicting it; left to that")
                continue
            if outcome.status == "up to date":
                say(f"{result}: up to date")
            elif verbose:
                say(describe_timings(outcome))
            print(result, flush=True)
            if render:
                request_of_pictures = RenderRequest(slide=slide, overwrite=request.overwrite_before > 0)
                draw = partial(render_one, request_of_pictures, result.parent)
                failures += [(slide, reason) for _, reason in for_each([result], draw, alone=len(jobs) == 1)]
    if len(jobs) > 1:
        list_failures(failures, [job.slide for job in jobs], out / "failures.csv")
    return sum_up(failures, len(jobs), "slides") or (LEFT_TO_ANOTHER if n_elsewhere else 0)


def plan_command(slides: Sequence[str], model_name: str, request: Request, out: Path) -> int:
    """Print what a prediction would do: spots, time, disk. Returns the exit code."""
    model = load_model(find_model(model_name))
    request = replace(request, genes=chosen_genes(request.genes, model))
    jobs = find_jobs(slides, out, report)
    failures: list[Failure] = []
    total = np.zeros(3)
    for plan in plan_slides(jobs, model, request, report):
        if plan.error is not None:
            failures.append((plan.job.slide, str(plan.error)))
            report(f"stpredict: {plan.error}")
            continue
        if not plan.n_spots:
            print(f"{plan.job.slide} -> {plan.job.result}: up to date")
            continue
        total += (plan.n_spots, plan.seconds, plan.n_bytes)
        print(f"{plan.job.slide} -> {plan.job.result}: {describe_plan(plan.n_spots, plan.seconds, plan.n_bytes)}")
    if len(jobs) > 1:
        print(f"{len(jobs) - len(failures)} slides: {describe_plan(*total)}")
    return sum_up(failures, len(jobs), "slides")


def chosen_genes(genes: Sequence[str], model: Model) -> Sequence[str]:
    """The genes asked for; for the word `reliable`, those that the model's card calls so.

    Raises UsageError if there are none, or the card does not say.
    """
    if list(genes) != [RELIABLE]:
        return genes
    reliable = reliable_genes(model.card)
    if reliable is None:
        raise UsageError(f"--genes {RELIABLE}: the card of {model.name} does not say which are; name genes.")
    if not reliable:
        raise UsageError(f"--genes {RELIABLE}: none of {model.name} is: none beat ridge with an interval above 0.")
    return reliable


def describe_plan(n_spots: float, seconds: float, n_bytes: float) -> str:
    """Spots, and about how long and how much room they take."""
    minutes, hours = seconds / 60, seconds / 3600
    time = f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
    return f"{n_spots:,.0f} spots, about {time}, up to {max(n_bytes / 1e6, 1):,.0f} MB"


def describe_timings(outcome: Outcome) -> str:
    """Where the time of one slide went, and what its flow of patches waited for."""
    seconds = outcome.seconds
    flow = max(seconds["reading_and_inference"], 1e-3)
    waits = [stage for stage in seconds if stage.startswith(("waiting", "filling"))]
    stages = ", ".join(
        f"{stage.replace('_', ' ')} {took:.1f} s" for stage, took in seconds.items() if stage not in waits
    )
    shares = ", ".join(f"{stage.replace('_', ' ')} {seconds[stage] / flow:.0%}" for stage in waits)
    name, rate = outcome.job.slide.name, outcome.n_spots / flow
    return f"{name}: {outcome.n_spots} spots, {rate:.0f} a second; {stages}; of the reading and inference {shares}"


def list_failures(failures: Sequence[Failure], slides: Sequence[Path], path: Path) -> None:
    """Replace what a list of failures says of some slides; remove it when it says nothing any more.

    A file of this name that is no such list is left alone.
    """
    rows = {str(slide): reason for slide, reason in failures}
    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            header, *earlier = [*csv.reader(file)] or [[]]
        if tuple(header) != FAILURE_COLUMNS:
            return
        now = {plain_cell(str(slide)) for slide in slides}
        rows = {row[0]: row[1] for row in earlier if len(row) == 2 and row[0] not in now} | rows
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FAILURE_COLUMNS)
        writer.writerows((plain_cell(slide), plain_cell(reason)) for slide, reason in rows.items())
    if failures:
        report(f"what failed is listed in {path}")
