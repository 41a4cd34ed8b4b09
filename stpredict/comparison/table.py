"""One table of all jobs' outcomes: a row per baseline and system, each score a mean over parts and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from stpredict.comparison.jobs import Job
from stpredict.comparison.request import BASELINES
from stpredict.evaluation.splits import DEPTH_CONTROLLED, RIDGE
from stpredict.statistics.metrics import PATIENTS_FOR_INTERVALS

#: The costs of a system; training time is for one part and seed.
COSTS = ("parameters", "multiplications", "spots_per_second", "training_seconds")


@dataclass(frozen=True)
class Row:
    """One baseline or system. A score is None if it is not known; `reason` says why some of its jobs are not done."""

    name: str
    is_system: bool
    seeds: int  # those with every part done
    scores: dict[str, float | None]
    per_gene: dict[str, float]  # depth-controlled
    interval: tuple[float, float] | None = None  # of 95 %, over patients
    between_seeds: float | None = None  # standard deviation of the first score
    quartiles: list[float] | None = None
    of_the_ceiling: float | None = None
    above_ridge: float | None = None  # share of the genes
    costs: dict[str, float] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    reason: str | None = None


def make_rows(systems: Sequence[str], jobs: Sequence[Job]) -> tuple[list[Row], dict[str, float]]:
    """The baselines' rows, then the systems' in the order of the call; and the noise ceiling of each gene.

    A seed counts only when every part is done, so that all rows score the same spots.
    """
    scored = complete([job for job in jobs if job.system == BASELINES])
    ceiling = over_jobs((one["genes"], one["noise_ceiling"]) for one in scored)
    names = [name for name in (scored[0]["rows"] if scored else ()) if all(name in one["rows"] for one in scored)]
    rows = [make_row(name, [(one, one["rows"][name]) for one in scored]) for name in names]
    for system in systems:
        own = [job for job in jobs if job.system == system]
        row = make_row(system, [(one, one["row"]) for one in complete(own)])
        rows.append(replace(row, is_system=True, reason=why_not(own)))
    ridge = next((row.per_gene for row in rows if row.name == RIDGE), {})
    return [beside(row, ridge, ceiling) for row in rows], ceiling


def complete(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The outcomes of all jobs of each seed whose jobs are all done."""
    by_seed: dict[int, list[dict[str, Any] | None]] = {}
    for job in jobs:
        by_seed.setdefault(job.seed, []).append(job.scores())
    return [one for found in by_seed.values() if all(found) for one in found if one]


def make_row(name: str, found: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Row:
    """A row from what each job `found`: its whole outcome, and the part of it that belongs to this row."""
    scores = {key: mean([row["scores"][key] for _, row in found]) for key in (found[0][1]["scores"] if found else ())}
    over_people, interval = over_patients([row["per_patient"] for _, row in found])
    if over_people is not None:
        scores[DEPTH_CONTROLLED] = over_people
    per_gene = over_jobs((job["genes"], row["per_gene"]) for job, row in found if row["per_gene"])
    seeds = sorted({job["seed"] for job, _ in found})
    means = [mean([row["scores"][DEPTH_CONTROLLED] for job, row in found if job["seed"] == seed]) for seed in seeds]
    known = [value for value in means if value is not None]
    quartiles = np.percentile(list(per_gene.values()), (25, 50, 75)) if per_gene else None
    costs = [job["cost"] for job, _ in found if "cost" in job]
    return Row(
        name, False, len(seeds), scores, per_gene, interval,
        between_seeds=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        quartiles=None if quartiles is None else [round(float(q), 4) for q in quartiles],
        costs={key: float(np.mean([cost[key] for cost in costs])) for key in COSTS} if costs else {},
        epochs=sorted({job["epochs"] for job, _ in found if "epochs" in job}),
    )  # fmt: skip


def beside(row: Row, ridge: Mapping[str, float], ceiling: Mapping[str, float]) -> Row:
    """The row beside others: adds its share of the noise ceiling, and the share of genes on which it passes ridge."""
    ours, highest = row.scores.get(DEPTH_CONTROLLED), mean(list(ceiling.values()))
    both = [gene for gene in row.per_gene if gene in ridge]
    return replace(
        row,
        of_the_ceiling=ours / highest if ours is not None and highest else None,
        above_ridge=float(np.mean([row.per_gene[gene] > ridge[gene] for gene in both]))
        if both and row.name != RIDGE
        else None,
    )


def why_not(jobs: Sequence[Job]) -> str | None:
    """Why some of a system's jobs are not done: the reason of the first that failed, else that they are waiting."""
    undone = [job for job in jobs if job.status() != "done"]
    if not undone:
        return None
    reasons = [reason for job in undone if job.status() == "failed" and (reason := job.failure())]
    if reasons:
        more = f" ({len(reasons)} of {len(jobs)} jobs failed)" if len(reasons) < len(jobs) else ""
        return f"{reasons[0]}{more}"
    return f"{len(undone)} of {len(jobs)} jobs are not done yet."


def over_patients(per_job: Sequence[Mapping[str, float | None]]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over patients, each counting once, and its 95 % Student interval; None for few patients."""
    patients = sorted({name for one in per_job for name in one})
    means = [mean([one[name] for one in per_job if name in one]) for name in patients]
    values = np.array([value for value in means if value is not None])
    if len(values) < PATIENTS_FOR_INTERVALS:
        return None, None
    middle, half = values.mean(), stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(middle), (float(middle - half), float(middle + half))


def over_jobs(found: Iterable[tuple[Sequence[str], Sequence[float | None]]]) -> dict[str, float]:
    """Each gene's mean over the jobs that scored it."""
    scores: dict[str, list[float]] = {}
    for genes, values in found:
        for gene, value in zip(genes, values, strict=True):
            if value is not None:
                scores.setdefault(gene, []).append(value)
    return {gene: float(np.mean(values)) for gene, values in sorted(scores.items())}


def sections_of_genes(found: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many held-out sections measured each gene, from the outcomes of the baselines' jobs of one seed."""
    sections: Counter[str] = Counter()
    for one in found:
        sections.update(dict(zip(one["genes"], one.get("sections", ()), strict=False)))
    return dict(sorted(sections.items()))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
