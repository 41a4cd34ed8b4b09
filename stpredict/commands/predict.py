"""`predict` and its dry run: many slides, their results, what failed, where the time went."""

from __future__ import annotations

import csv
import math
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from stpredict.batch.jobs import Anonymity, Outcome, find_jobs
from stpredict.batch.processes import Work
from stpredict.batch.progress import Watch, watching
from stpredict.commands.inputs import LEFT_TO_ANOTHER, Failure, exit_code, for_each, table_of_failures, unread
from stpredict.commands.render import render_one
from stpredict.console import log, report
from stpredict.errors import MaskError, RegionsError, StpredictError, UsageError, counted
from stpredict.model.file import Model, find_model, load_model
from stpredict.model.reliability import reliable_genes
from stpredict.prediction.job import Job
from stpredict.prediction.request import Request, check_request, folders_of_results, warn_of_unpredicted_genes
from stpredict.storage.files import atomic_path

#: Words that `--genes` takes instead of names.
RELIABLE, ALL = "reliable", "all"
#: A model with more genes than this predicts all of them only on request.
MAX_GENES_UNASKED = 2000
FAILURE_COLUMNS = ("slide", "reason")


def predict_command(
    slides: Sequence[str], model_name: str, request: Request, out: Path, render: bool, verbose: bool,
    anonymous: Path | None, cluster: str | None, exclude: Sequence[str], strict: bool,
) -> int:  # fmt: skip
    """Predict slides and print the results' paths. Returns the exit code.

    If several slides are given, OUT/failures.csv also lists those that failed. `anonymous` is a table, and the only
    output with the slides' names. `cluster` is the address of a scheduler, whose workers predict the slides. With
    `strict`, the exit code is 1 if a result is not to be trusted.
    """
    start = time.monotonic()
    model = load_model(find_model(model_name))
    request = replace(request, genes=chosen_genes(request.genes, model))
    refuse_genes_as_slides(slides, model)
    if render:
        refuse_many_pictures(request.genes, model)
    check_request(model, request)
    check_mask(request, anonymous is not None)
    unreadable: dict[Path, str] = {}
    jobs = find_jobs(slides, out, report, Anonymity(anonymous) if anonymous else None, exclude, unreadable)
    check_masks_of(jobs, request)
    failures = unread(unreadable)
    count = Counter({"unreadable": len(unreadable)})
    with watching(len(jobs)) as watch, closing(predicted(jobs, model, request, cluster, watch)) as outcomes:
        for outcome in outcomes:
            count[outcome.status] += 1
            watch.ended(str(outcome.job.shown), outcome.status)
            log_outcome(outcome, verbose)
            if outcome.status == "failed":
                failures.append(failure_of(outcome.job, outcome.error))
            elif outcome.status != "elsewhere":
                print(outcome.job.result, flush=True)
                if strict and tell_doubts(outcome.job):
                    count["doubtful"] += 1
                if render:
                    failures += draw_pictures(outcome.job, request.overwrite_before > 0, alone=len(jobs) == 1)
    total = len(jobs) + len(unreadable)
    if total > 1 and exit_code(failures, total) != UsageError.exit_code:
        folders = {folder for job in jobs for folder in job.slide.parents}
        list_failures(failures, [*(job.shown for job in jobs), *folders], out / "failures.csv")
    return sum_up_slides(failures, count, len(jobs), time.monotonic() - start)


def predicted(
    jobs: Sequence[Job], model: Model, request: Request, cluster: str | None, watch: Watch
) -> Generator[Outcome, None, None]:
    """Predict slides on a cluster, on several GPUs, in child processes if they are many, or here if it is only one."""

    def progress(job: Job, done: int, total: int) -> None:
        watch.progress(str(job.shown), done, total)

    check_request(model, request)
    devices = [request.engine.device] if cluster else [one.device for one in request.engine.on_each_device()]
    request = replace(request, engine=replace(request.engine, device=devices[0]))
    work = Work(model.path, model.sha256, request, len(jobs))
    with folders_of_results(jobs, request):
        if cluster:
            try:
                from stpredict.batch.cluster import predict_on_cluster
            except ModuleNotFoundError as error:
                raise UsageError(f'--cluster needs {error.name}: pip install ".[cluster]".') from error
            warn_of_unpredicted_genes(model, request.genes, report)
            yield from predict_on_cluster(jobs, work, cluster, progress)
        elif len(devices) > 1:
            from stpredict.batch.devices import predict_on_devices

            yield from predict_on_devices(jobs, work, devices, progress)
        elif len(jobs) > 1:
            from stpredict.batch.child import predict_in_children

            yield from predict_in_children(jobs, work, progress)
        else:
            from stpredict.batch.slides import predict_slides

            yield from predict_slides(jobs, model, request, report, progress)


def plan_command(
    slides: Sequence[str], model_name: str, request: Request, out: Path, anonymous: Path | None, exclude: Sequence[str]
) -> int:
    """Print what a prediction would do: spots, time, disk. Returns the exit code."""
    from stpredict.batch.slides import plan_slides

    start = time.monotonic()
    model = load_model(find_model(model_name))
    engines = request.engine.on_each_device()
    request = replace(request, genes=chosen_genes(request.genes, model), engine=engines[0])
    refuse_genes_as_slides(slides, model)
    check_mask(request, anonymous is not None)
    unreadable: dict[Path, str] = {}
    jobs = find_jobs(slides, out, report, Anonymity(anonymous, keep=False) if anonymous else None, exclude, unreadable)
    check_masks_of(jobs, request)
    if anonymous and not anonymous.exists():
        report(f"{anonymous} does not exist yet: the prediction will make other names than those below")
    failures = unread(unreadable)
    count = Counter({"unreadable": len(unreadable)})
    total = np.zeros(3)
    for plan in plan_slides(jobs, model, request, report):
        job = plan.job
        if plan.error is not None:
            failures.append(failure_of(job, plan.error))
            count["failed"] += 1
            log("slide-failed", f"stpredict: {plan.error}", **job.facts)
            continue
        if not plan.n_spots:
            count["up to date"] += 1
            print(f"{job.shown} -> {job.result}: up to date")
            continue
        seconds = plan.seconds / len(engines)
        total += (plan.n_spots, seconds, plan.n_bytes)
        print(f"{job.shown} -> {job.result}: {describe_plan(plan.n_spots, seconds, plan.n_bytes)}")
    if len(jobs) > 1:
        print(f"{counted(len(jobs) - count['failed'], 'slide')}: {describe_plan(*total)}")
    return sum_up_slides(failures, count, len(jobs), time.monotonic() - start)


def log_outcome(outcome: Outcome, verbose: bool) -> None:
    """Log what became of a slide. For people, a success is logged only if `verbose`."""
    job = outcome.job
    if outcome.status == "failed":
        log("slide-failed", f"stpredict: {outcome.error}", **job.facts)
    elif outcome.status == "elsewhere":
        log("slide-left", f"{job.shown}: another process is predicting it; left to that", **job.facts)
    elif outcome.status == "up to date":
        log("slide-skipped", f"{job.result}: up to date", **job.facts)
    else:
        seconds = round(sum(took for stage, took in outcome.seconds.items() if not is_wait(stage)), 3)
        line = describe_timings(outcome) if verbose else None
        log("slide-finished", line, **job.facts, spots=outcome.n_spots, seconds=seconds)


def tell_doubts(job: Job) -> bool:
    """Log why a result is not to be trusted, whichever call wrote it. Returns whether there is a reason."""
    from stpredict.prediction.doubts import doubts  # slow to import
    from stpredict.result.file import read_provenance

    reasons = doubts(read_provenance(job.result))
    for reason in reasons:
        log("slide-doubtful", f"stpredict: {job.shown.name}: --strict: {reason}", **job.facts)
    return bool(reasons)


def draw_pictures(job: Job, overwrite: bool, alone: bool) -> list[Failure]:
    """Draw pictures beside a result and print their paths. Returns the failures."""
    from stpredict.rendering.styles import RenderRequest

    def draw(result: Path) -> Iterator[Path]:
        try:
            yield from render_one(RenderRequest(slide=job.slide, overwrite=overwrite), result.parent, result)
        except Exception as error:
            job.hide_names(error)
            raise

    def tell(line: str) -> None:
        log("pictures-failed", line, **job.facts)

    return [Failure(job.shown, failure.reason) for failure in for_each([job.result], draw, alone, tell)]


def sum_up_slides(failures: Sequence[Failure], count: Counter[str], n_slides: int, seconds: float) -> int:
    """Log how many slides were done, and which slides and folders failed. Returns the exit code."""
    total, what = n_slides + count["unreadable"], "slides and folders" if count["unreadable"] else "slides"
    code = exit_code(failures, total) or int(count["doubtful"] > 0) or (LEFT_TO_ANOTHER if count["elsewhere"] else 0)
    log(
        "summary", table_of_failures(failures, total, what), slides=n_slides, finished=count["done"],
        skipped=count["up to date"], left=count["elsewhere"], failed=count["failed"], doubtful=count["doubtful"],
        pictures_failed=len(failures) - count["failed"] - count["unreadable"], seconds=round(seconds, 3),
        exit_code=code,
    )  # fmt: skip
    return code


def chosen_genes(genes: Sequence[str], model: Model) -> Sequence[str]:
    """The genes asked for; for the word `reliable`, the reliable genes of the model's card; for all genes, none.

    Raises UsageError if no gene is reliable, the card does not say, or a large model would predict all genes unasked.
    """
    if list(genes) == [ALL] and ALL not in model.panel:
        return ()
    if not genes and len(model.panel) > MAX_GENES_UNASKED:
        n, size = len(model.panel), len(model.panel) * 10_000 * 4 / 1e9
        raise UsageError(
            f"{model.name} predicts {n:,} genes, {size:.1f} GB for 10,000 spots; name those you want with "
            f"--genes A,B, or say --genes {ALL}."
        )
    if list(genes) != [RELIABLE]:
        return genes
    reliable = reliable_genes(model.card)
    if reliable is None:
        raise UsageError(f"--genes {RELIABLE}: the card of {model.name} does not say which are reliable; name genes.")
    if not reliable:
        raise UsageError(
            f"--genes {RELIABLE}: no gene of {model.name} has an interval above 0 and beats ridge; name genes."
        )
    return reliable


def refuse_genes_as_slides(slides: Sequence[str], model: Model) -> None:
    """Raise UsageError for a gene in a slide's place, as in `--genes GNAS DDX5`."""
    for name in slides:
        if name in model.panel and not Path(name).exists():
            raise UsageError(f"{name}: a gene of {model.name}, not a slide; name genes with --genes A,B.")


def check_mask(request: Request, anonymous: bool = False) -> None:
    """Raise UsageError if the mask that all slides share cannot be read."""
    if request.mask:
        from stpredict.slides.mask import read_mask  # slow to import

        try:
            mask = str(request.mask)  # it may bear a patient's name
            read_mask(request.mask, lambda line: report(line.replace(mask, "the mask") if anonymous else line))
        except (MaskError, RegionsError) as error:
            raise UsageError(f"--mask {error}") from error


def check_masks_of(jobs: Sequence[Job], request: Request) -> None:
    """Raise UsageError if slides' masks would have no effect, or a mask's origin was given without a mask."""
    if request.spots_file and any(job.mask for job in jobs):
        raise UsageError("a list's masks choose among the spots of a lattice; those of --spots are all predicted.")
    if request.mask_origin != Request.mask_origin and not request.mask and not any(job.mask for job in jobs):
        raise UsageError("--mask-origin: says where the coordinates of --mask begin; give --mask, too.")


def failure_of(job: Job, error: StpredictError | None) -> Failure:
    """A slide that failed, as an entry in a list of failures."""
    return Failure(job.shown, str(error), error is not None and error.remediable)


def refuse_many_pictures(genes: Sequence[str], model: Model) -> None:
    """Raise UsageError if `--render` would draw more genes than anybody looks at."""
    from stpredict.rendering.styles import MAX_GENES_BY_DEFAULT  # slow to import

    if (len(genes) or len(model.panel)) > MAX_GENES_BY_DEFAULT:
        raise UsageError(
            f"--render draws up to {MAX_GENES_BY_DEFAULT} genes; name fewer with --genes, or draw some with "
            "`stpredict render` afterwards."
        )


def describe_plan(n_spots: float, seconds: float, n_bytes: float) -> str:
    """The number of spots, and about how much time and disk space they take."""
    minutes, hours = seconds / 60, seconds / 3600
    took = f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
    return f"{counted(round(n_spots), 'spot')}, about {took}, up to {math.ceil(n_bytes / 1e6):,} MB"


def describe_timings(outcome: Outcome) -> str:
    """Where the time of one slide went, and what its flow of patches waited for."""
    seconds = outcome.seconds
    flow = max(seconds["reading_and_inference"], 1e-3)
    waits = [stage for stage in seconds if is_wait(stage)]
    stages = ", ".join(
        f"{stage.replace('_', ' ')} {took:.1f} s" for stage, took in seconds.items() if stage not in waits
    )
    shares = ", ".join(f"{stage.replace('_', ' ')} {seconds[stage] / flow:.0%}" for stage in waits)
    rate = outcome.n_spots / (flow + seconds.get("surroundings", 0.0))
    found = f"{outcome.job.shown.name}: {counted(outcome.n_spots, 'spot')}, {rate:.{int(rate < 1)}f} a second"
    return f"{found}; {stages}; of the reading and inference {shares}"


def is_wait(stage: str) -> bool:
    """Is this stage part of another one, and says why that one waited?"""
    return stage.startswith(("waiting", "filling"))


def list_failures(failures: Sequence[Failure], slides: Sequence[Path], path: Path) -> None:
    """Replace some slides' lines in a list of failures; remove the list when it is empty.

    A file of this name that is not such a list stays as it is.
    """
    rows = {str(slide): reason for slide, reason, _ in failures}
    if not rows and not path.exists():
        return
    from stpredict.storage.csv_cells import plain_cell  # slow to import

    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *earlier = [*csv.reader(file)] or [[]]
        if tuple(header) != FAILURE_COLUMNS:
            return
        now = {plain_cell(str(slide)) for slide in slides}
        rows = {row[0]: row[1] for row in earlier if len(row) == 2 and row[0] not in now} | rows
    if not rows:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(FAILURE_COLUMNS)
        writer.writerows((plain_cell(slide), plain_cell(reason)) for slide, reason in rows.items())
    if failures:
        report(f"what failed is listed in {path}")
