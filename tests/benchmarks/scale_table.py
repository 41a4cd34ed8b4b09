"""The table of tests/benchmarks/scale.py."""

from __future__ import annotations

from typing import Any


def growth_kib(found: dict[str, Any], name: str, spots: int) -> float | None:
    """KiB of peak memory for each further spot."""
    one, third = found[name], found[f"{name}_third"]
    return (one["peak_gib"] - third["peak_gib"]) * 2**20 / (spots - spots // 3) if one and third else None


def report(
    spots: int, genes: int, data: str, ours: dict[str, Any], theirs: dict[str, Any] | None
) -> list[str]:  # fmt: skip
    """The table, as lines of Markdown; `data` says what was measured on."""

    def cell(found: dict[str, Any] | None, name: str, key: str, digits: int = 1) -> str:
        if found is None:
            return "not measured"
        return f"{found[name][key]:.{digits}f}" if found[name] else "failed"

    def row(what: str, name: str, key: str, target: str, digits: int = 1) -> str:
        return f"| {what} | {cell(theirs, name, key, digits)} | {cell(ours, name, key, digits)} | {target} |"

    def growth(name: str) -> str:
        values = [None if found is None else growth_kib(found, name, spots) for found in (theirs, ours)]
        return " | ".join("not measured" if value is None else f"{value:.0f}" for value in values)

    def folds(found: dict[str, Any] | None) -> str:
        if found is None or not (found["fit"] and found["fit_without_folds"]):
            return "not measured"
        return f"{found['fit']['cpu_s'] / found['fit_without_folds']['cpu_s']:.1f}"

    return [
        "# Training as spots grow",
        "",
        f"`python tests/benchmarks/scale.py --spots {spots} --genes {genes}`, processor seconds of one thread, {data}. "
        "Features are given; nothing here is a network's time. *Before* is another checkout, measured by the same "
        "script.",
        "",
        "| what | before | now | wanted |",
        "|---|---|---|---|",
        row(f"peak memory, {spots} spots, four folds, GiB", "fit", "peak_gib", "4 at 100,000 spots", 2),
        f"| its growth, KiB a spot | {growth('fit')} | 2 |",
        row("of that, the made-up data themselves, GiB", "fit", "made_gib", "", 2),
        row("fit, baselines, scores and model file, four folds, CPU s", "fit", "cpu_s", "120 at 30,000 spots"),
        row("the same without folds, CPU s", "fit_without_folds", "cpu_s", ""),
        f"| four folds, in fits | {folds(theirs)} | {folds(ours)} | 1.3 |",
        row(
            f"scores of {spots} spots x 700 genes beside baselines, CPU s",
            "evaluate",
            "cpu_s",
            "1,200 at 100,000 spots",
        ),
        row("peak memory of that, GiB", "evaluate", "peak_gib", "3 at 100,000 spots", 2),
        f"| its growth, KiB a spot | {growth('evaluate')} | |",
        row("a head where six of eight sections have panels of their own, CPU s", "differing", "cpu_s", ""),
        row("counts written, CPU s", "counts", "write_s", ""),
        row("counts read, CPU s", "counts", "read_s", ""),
        f"| counts written and read, growth of memory, KiB a spot | {growth('counts')} | 2 |",
        row("reference of the head, 6 patients, CPU s", "reference_6", "cpu_s", "5 at 30,000 spots"),
        row("reference of the head, 100 patients, CPU s", "reference_100", "cpu_s", "5 at 30,000 spots"),
        row("nearest neighbours, k chosen, CPU s", "neighbours", "fit_s", ""),
        row(f"nearest neighbours of {spots // 2} spots, CPU s", "neighbours", "predict_s", ""),
        row("nearest neighbours, 700 genes, further memory, GiB", "neighbours", "more_gib", "", 2),
        row("loop with a free network, patches a CPU s", "loop", "patches_per_cpu_s", "5,000", 0),
        row("extra disk where HEST's patches are there, KiB a spot", "disk", "kib_a_spot", "1", 2),
        row("the counts beside them, KiB a spot", "disk", "counts_kib", "", 2),
        row("colour and texture, CPU ms a patch", "colour", "ms_a_patch", "", 2),
        row("the same of 1.5 M spots (drawn: 50,000), CPU min, extrapolated", "colour", "min_of_many", "20", 0),
        "| linear heads' folds by subtraction | a fit each | a fit each: **not built** | 1.3 fits |",
        "| shards that are shared and never made twice | no | **not built** | |",
        "| a kill costs | an epoch | 5 minutes, the same weights (`tests/training/test_resuming.py`) | 5 minutes |",
        "| weights of 1 and 2 processes | similar | within 1e-5 in fp32 (`tests/training/test_processes.py`) | 1e-5 |",
        "| `evaluate`'s copies of patches | all | one section's at a time, none of HEST's own | none |",
    ]
