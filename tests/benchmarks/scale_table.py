"""The table of tests/benchmarks/scale.py."""

from __future__ import annotations

from dataclasses import dataclass

from scale_data import HOT, OF_SECTION, RARE, SECTIONS

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Taken:
    """Figures of all measures at `spots`, and of some at `many`."""

    spots: int
    found: Figures
    many: int
    of_many: Figures

    def at(self, name: str, key: str, digits: int = 1) -> str:
        return f"{self.found[name][key]:,.{digits}f}"

    def at_many(self, name: str, key: str, digits: int = 1) -> str:
        return f"{self.of_many[name][key]:,.{digits}f}"

    def growth_kib(self, name: str, given: str | None = "made_gib") -> str:
        """KiB of peak memory for each further spot, without the data that are `given` to the measure."""
        peaks = [one[name]["peak_gib"] - (one[name][given] if given else 0) for one in (self.found, self.of_many)]
        return f"{(peaks[1] - peaks[0]) * 2**20 / (self.many - self.spots):.1f}"

    def parts(self, name: str) -> str:
        """The time of a head and of those of parts, in heads."""
        return f"{self.found['heads'][name] / self.found['heads']['alone_s']:.2f}"


def report(taken: Taken) -> list[str]:
    """The table, as lines of Markdown."""
    few, many = f"{taken.spots:,}", f"{taken.many:,}"
    rows = [
        (f"training, {many} spots, five parts held out: peak memory, GiB", "over 23",
         taken.at_many("fit", "peak_gib", 2), "4"),
        (f"its growth from {few} spots on, KiB a spot", "164", taken.growth_kib("fit"), "2"),
        ("the same, CPU s", "", taken.at_many("fit", "cpu_s", 0), ""),
        (f"{few} spots, CPU s", "", taken.at("fit", "cpu_s"), ""),
        ("without parts held out, CPU s", "650 on other data, reading included", taken.at("fit_without_folds", "cpu_s"),
         "120"),
        (f"{many} spots: CPU s", "", taken.at_many("fit_without_folds", "cpu_s"), ""),
        ("peak memory, GiB", "", taken.at_many("fit_without_folds", "peak_gib", 2), ""),
        (f"its growth from {few} spots on, KiB a spot", "", taken.growth_kib("fit_without_folds"), "2"),
        (f"head of all, {few} spots, CPU s", "", taken.at("heads", "alone_s"), ""),
        ("that and the heads of five parts, in heads of all", "6", taken.parts("patients_s"), "1.3"),
        (f"that and the heads of {SECTIONS} parts, a section each, in heads of all", f"{SECTIONS + 1}",
         taken.parts("sections_s"), "1.3"),
        (f"`evaluate`, scores of {many} spots and 700 genes: peak memory, GiB", "21",
         taken.at_many("evaluate", "peak_gib", 2), "3"),
        ("of that, the data that are given, GiB", "", taken.at_many("evaluate", "made_gib", 2), ""),
        ("CPU minutes", "120", f"{taken.of_many['evaluate']['cpu_s'] / 60:.1f}", "20"),
        (f"a head where six of {SECTIONS} sections have panels of their own, {few} spots, CPU s", "",
         taken.at("differing", "cpu_s"), ""),
        ("its patterns of measured genes", "", taken.at("differing", "patterns", 0), ""),
        (f"a head taught means over neighbours, {many} spots, CPU s", "", taken.at_many("smooth", "cpu_s"), ""),
        ("its growth of memory, KiB a spot", "", taken.growth_kib("smooth"), "2"),
        (f"targets that a network is trained on, {many} spots: made and kept, CPU s", "",
         taken.at_many("targets", "cpu_s"), ""),
        ("of a batch of 64, CPU ms", "", taken.at_many("targets", "batch_ms", 2), ""),
        ("their growth of memory, KiB a spot", "", taken.growth_kib("targets"), "2"),
        (f"reference of the head, {few} spots, 6 patients, CPU s", "226", taken.at("reference_6", "cpu_s"), "5"),
        ("the same, 100 patients, CPU s", "226 x patients", taken.at("reference_100", "cpu_s"), "5"),
        (f"counts of {many} spots written; opened, CPU s", "",
         f"{taken.at_many('counts', 'write_s')}; {taken.at_many('counts', 'read_s')}", ""),
        ("growth of memory of that, KiB a spot", "", taken.growth_kib("counts", None), "2"),
        (f"nearest neighbours of {few} spots, k chosen; of half of the spots, CPU s", "",
         f"{taken.at('neighbours', 'fit_s')}; {taken.at('neighbours', 'predict_s')}", ""),
        ("further memory of that, 700 genes, GiB", "", taken.at("neighbours", "more_gib", 2), ""),
        ("loop with a free network, patches a CPU s", "1,160", taken.at("loop", "patches_per_cpu_s", 0), "5,000"),
        ("extra disk where HEST's patches are there, KiB a spot", "150", taken.at("disk", "kib_a_spot", 2), "1"),
        ("counts beside that, KiB a spot", "", taken.at("disk", "counts_kib", 2), ""),
        ("colour and texture, CPU ms a patch", "19", taken.at("colour", "ms_a_patch"), ""),
        ("the same of 1.5 million spots, of which 50,000 are described, CPU minutes, extrapolated", "480",
         taken.at("colour", "min_of_many"), "20"),
        ("a kill costs", "an epoch", "5 minutes, and the weights are the same (`tests/training/test_resuming.py`)",
         "5 minutes"),
        ("weights of 1 and 2 processes", "similar", "equal to 1e-5 in fp32 (`tests/training/test_processes.py`)",
         "1e-5"),
        ("three Xenium panels and 12 Visium sections (`panels.py`)", "1 gene", "2,000 genes, no spot lost", "1,000"),
        ("a section's patches are a file, which calls on the same tiles share, and none makes twice", "no",
         "yes (`tests/data_sets/test_section_files.py`); each run of a folder has its own", "yes"),
    ]  # fmt: skip
    return [
        "# Training as spots grow",
        "",
        "Written by `python tests/benchmarks/scale.py --write`. Processor seconds are of one thread, and memory is the",
        f"peak of a process of its own. Spots are made up, of 18,000 genes, {HOT + RARE:,} of which have counts in a",
        f"spot, in sections of {OF_SECTION:,}, two of each patient. Features are given, in half precision on disk, as",
        "a run keeps an encoder's; nothing here is a network's time. The panel has 700 genes. *In 0.1* was measured on",
        "another day, partly on other data.",
        "",
        "| what | in 0.1 | now | wanted |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
