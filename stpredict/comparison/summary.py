"""The findings of a comparison, for lines, files and pages alike: the rows, what they score, and notes on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stpredict.comparison.jobs import Job
from stpredict.comparison.papers import REPORTED, reported_of
from stpredict.comparison.preparation import Prepared, left_out, recorded, threads_of
from stpredict.comparison.request import BASELINES
from stpredict.comparison.table import Row, make_rows, sections_of_genes
from stpredict.errors import counted, some, some_of
from stpredict.evaluation.splits import DEPTH_CONTROLLED, RIDGE
from stpredict.evaluation.tables import PAPERS_COLUMNS, shown
from stpredict.statistics.metrics import PATIENTS_FOR_INTERVALS
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.training.processes import pick_device
from stpredict.training.protocols import PROTOCOLS
from stpredict.training.settings import Settings

#: The columns of scores. The first is the score that sequencing depth does not raise.
SCORE_COLUMNS = {
    DEPTH_CONTROLLED: "depth-controlled",
    "between_seeds": "± over seeds",
    "of_the_ceiling": "of the ceiling",
    "above_ridge": "genes above ridge",
    "log_cpm_per_gene": "expression Pearson",
    **PAPERS_COLUMNS,
}
COST_COLUMNS = {
    "parameters": "parameters",
    "multiplications": "multiplications",
    "spots_per_second": "spots/s",
    "training_seconds": "training",
    "epochs": "epochs",
}
SHARES = ("of_the_ceiling", "above_ridge")


@dataclass(frozen=True)
class Summary:
    """Everything that a comparison reports."""

    title: str
    rows: list[Row]
    ceiling: dict[str, float]  # by gene
    sections: dict[str, int]  # how many held-out sections measured each gene
    parts: list[dict[str, Any]]
    seeds: int
    settings: dict[str, Any]
    leaks: list[str]
    notes: list[str]
    protocol: str | None

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.reason]


def summarise(prepared: Prepared, jobs: Sequence[Job]) -> Summary:
    """The findings so far. A system has a `reason` if some of its jobs are not done."""
    request = prepared.request
    rows, ceiling = make_rows(request.systems, jobs)
    scored = [one for job in jobs if job.system == BASELINES and (one := job.scores())]
    parts = [{key: one[key] for key in ("fold", "kind", "train", "test", "spots", "genes")} for one in scored]
    patients = {name for one in scored for name in one["rows"][RIDGE]["per_patient"]}
    return Summary(
        f"{len(request.systems)} systems on {request.dataset.absolute().name.removesuffix('.tiles.h5')}",
        rows, ceiling, sections_of_genes(scored), parts, request.seeds, recorded(request), list(about_leaks(prepared)),
        [*about_numbers(prepared, ceiling, sum(one["spots"] for one in scored), len(patients)), *about_genes(scored)],
        request.protocol,
    )  # fmt: skip


def about_leaks(prepared: Prepared) -> Iterator[str]:
    """Leaks from the held-out parts into training, a sentence each."""
    request = prepared.request
    leaking = [fold.name for fold in prepared.folds if fold.kind == "section"]
    if request.protocol and (leaking or any(fold.leak for fold in prepared.folds)):
        yield f"LEAK: {PROTOCOLS[request.protocol].leak}"
    elif leaking:
        yield f"LEAK: other sections of the same patients are trained on where these are held out: {some(leaking)}"


def about_numbers(prepared: Prepared, ceiling: dict[str, float], spots: int, n_patients: int) -> Iterator[str]:
    """Notes on the numbers, a sentence each."""
    request, settings = prepared.request, prepared.request.settings
    yield (
        f"held out in turn: {', '.join(f'{fold.kind} {some_of(fold.name)}' for fold in prepared.folds)}; "
        f"{spots} held-out spots of {settings.min_depth} counts or more; "
        f"seeds {', '.join(map(str, range(request.seeds)))}"
    )
    if broken := left_out(request):
        yield f"left out, as they could not be read: {', '.join(broken)}"
    yield f"expression is {NORMALISATIONS[settings.normalisation].unit}"
    if ceiling:
        yield f"the noise of the counts allows {sum(ceiling.values()) / len(ceiling):.3f} at most, depth-controlled"
    if n_patients >= PATIENTS_FOR_INTERVALS:
        yield (
            f"depth-controlled means are over {n_patients} patients, each counting once, with 95 % Student "
            "intervals; the other scores are means over the held-out parts"
        )
    else:
        yield "scores are means over the held-out parts, each counting once; too few patients for an interval"
    yield (
        "parameters count frozen ones; multiplications are those of one spot by itself; spots per second and training "
        f"time, of one part and seed, are those of plain torch in fp32 on {pick_device(request.device)} with "
        f"{threads_of(request)} threads at the end of this call, and other machines may have done other jobs"
    )
    yield how_trained(prepared)
    if len(prepared.folds) * request.seeds == 1:
        yield "one part and one seed: a difference between two systems may be chance"


def about_genes(scored: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A note on genes that only some sections of a held-out part measured."""
    if any(n < one["scored_sections"] for one in scored for n in one.get("sections", ())):
        yield (
            "not all held-out sections measured all genes: each gene is scored in those that did, whose number is in "
            "the column sections of genes.csv"
        )


def how_trained(prepared: Prepared) -> str:
    """How long and how the systems were trained, in a sentence."""
    request, settings = prepared.request, prepared.request.settings
    taught = (
        f", after {settings.teach_patches} unlabelled patches" if request.unlabelled and settings.teach_patches else ""
    )
    begun = f"; begun with weights of the user's: {', '.join(sorted(request.weights))}" if request.weights else ""
    if request.recipe == "ours":
        how = f"by our recipe{taught}, with objective {settings.objective} and {settings.epochs} epochs at most"
    else:
        longest = "" if settings.epochs == Settings.epochs else f", for {settings.epochs} epochs at most"
        how = f"by the recipe {request.recipe}{longest}"
    if request.recipe == "ours" and prepared.n_tissue:
        slides = counted(prepared.n_tissue, "slide")
        begun += f"; those that learn from unlabelled tissue saw that of {slides} without counts too"
    how += f", {settings.balance} counting alike" if settings.balance else ""
    return f"networks were trained {how}{begun}; what longer training would do is not known from this"


def cell(row: Row, key: str) -> str:
    """One cell of the table as text."""
    if key == DEPTH_CONTROLLED:
        value = shown(key, row.scores.get(key))
        return f"{value} ({row.interval[0]:.3f} to {row.interval[1]:.3f})" if row.interval else value
    if key == "between_seeds":
        return shown(key, row.between_seeds)
    if key in SHARES:
        share: float | None = getattr(row, key)
        return "-" if share is None else f"{share:.0%}"
    if key == "epochs":
        return "–".join(str(n) for n in sorted({row.epochs[0], row.epochs[-1]})) if any(row.epochs) else "-"
    if key in COST_COLUMNS:
        return cost(key, row.costs.get(key))
    return shown(key, row.scores.get(key))


def cost(key: str, value: float | None) -> str:
    """A cost of a system, in a unit for people."""
    if value is None:
        return "-"
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    if key == "multiplications":
        return f"{value / 1e9:.2f} G"
    if key == "training_seconds":
        return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def papers_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the numbers that papers report for these systems; empty if the protocol has none."""
    if summary.protocol is None:
        return [], []
    paper = REPORTED[summary.protocol]
    rows = []
    for row in summary.rows:
        if row.is_system and (numbers := reported_of(summary.protocol, row.name)):
            rows.append([row.name, *("-" if number is None else f"{number:g}" for number in numbers)])
    titles = [f"{data_set} {score}" for data_set in paper.data_sets for score in paper.scores]
    return [f"reported: {paper.table}", *titles], rows
