"""Find sections that a data set holds twice, under two names. On two sides of a split they would leak into the test."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from stpredict.arrays import Labels
from stpredict.data.counts import Counts, in_memory
from stpredict.data.section import Section

#: Two spots with this many counts hardly ever have the same counts by chance.
DEEP = 100
#: Two sections are one if they share this part of their deep spots, and at least this many.
SHARE, LEAST = 0.5, 10
#: Size of the beginning, middle and end of a large file, which are compared.
PART_BYTES = 1 << 20
#: A number per spot, and the multipliers that make it from the spot's sums.
Keys = npt.NDArray[np.uint64]
MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True)
class Twins:
    """Two sections that are one, and the evidence."""

    first: str
    second: str
    why: str

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} have {self.why}, so they count as one patient's and are held out together"
        )


def told_twins(twins: Sequence[Twins], limit: int = 5) -> list[str]:
    """A line for each of the first pairs, and one on how many more there are."""
    more = [f"{len(twins) - limit} more pairs of sections are one each"] if len(twins) > limit else []
    return [*map(str, twins[:limit]), *more]


def find_twins(sections: Sequence[Section]) -> tuple[Twins, ...]:
    """The pairs of sections with equal counts, or with spots at equal places of equal images."""
    by_counts = twins_by_counts([section.name for section in sections], (section.counts for section in sections))
    found = {(pair.first, pair.second): pair for pair in (*_twins_by_image(sections), *by_counts)}
    return tuple(found[names] for names in sorted(found))


def twins_by_counts(names: Sequence[str], counts: Iterable[Counts]) -> list[Twins]:
    """The pairs of sections whose counts (spots x genes) are the same, in any order and under any genes' names.

    One section after the other is looked at, once. Spots are compared by depth, number of genes, and sum of squared
    counts. Sections are equal if all their spots are, or most of their deep spots, for one of them may lack some.
    """
    spots = [_spots(of_section) for of_section in counts]
    whole: dict[bytes, list[str]] = defaultdict(list)
    for name, (own, _) in zip(names, spots, strict=True):
        if len(np.unique(own)) >= LEAST:
            whole[own.tobytes()].append(name)
    pairs = {pair: "equal counts" for same in whole.values() for pair in combinations(sorted(same), 2)}
    deep = [own for _, own in spots]
    every = np.concatenate([*deep, np.empty(0, np.uint64)])
    owner = np.repeat(np.arange(len(deep)), [len(own) for own in deep])
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    starts = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]])) if len(every) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(every))
    shared: Counter[tuple[int, int]] = Counter()
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        shared.update(combinations(owner[start:end].tolist(), 2))
    for (one, other), times in shared.items():
        if times >= max(LEAST, SHARE * min(len(deep[one]), len(deep[other]))):
            first, second = sorted((names[one], names[other]))
            pairs.setdefault((first, second), f"equal counts in {times} spots")
    return [Twins(first, second, why) for (first, second), why in pairs.items()]


def twins_of_spots(counted: Sequence[tuple[Labels, Counts]]) -> tuple[Twins, ...]:
    """As `twins_by_counts`, with a section's label for each spot."""
    parts = [(str(name), counts, section == name) for section, counts in counted for name in np.unique(section)]
    of_sections = (in_memory(counts.rows(np.flatnonzero(own))) for _, counts, own in parts)
    return tuple(twins_by_counts([name for name, _, _ in parts], of_sections))


def _spots(counts: Counts) -> tuple[Keys, Keys]:
    """A number for each spot with counts, sorted; and the numbers of deep spots, each once."""
    empty = np.empty(0, np.uint64)
    parts = [(empty, empty), *(_keys(block) for _, block in counts.blocks())]
    keys, depth = (np.concatenate(each) for each in zip(*parts, strict=True))
    return np.sort(keys[depth > 0]), np.unique(keys[depth >= DEEP])


def _keys(counts: csr_array) -> tuple[Keys, Keys]:
    """The number of each spot, and its depth."""
    whole = counts.astype(np.uint64)
    depth = np.asarray(whole.sum(axis=1)).ravel().astype(np.uint64)
    genes = np.asarray((counts > 0).sum(axis=1)).ravel().astype(np.uint64)
    squares = np.asarray(whole.multiply(whole).sum(axis=1)).ravel().astype(np.uint64)
    return (depth * MIX[0] + genes) * MIX[1] + squares, depth


def _twins_by_image(sections: Sequence[Section]) -> Iterable[Twins]:
    """Pairs with the same image, even under two names, on which most spots of one lie at spots of the other."""
    same: dict[bytes, list[Section]] = defaultdict(list)
    for section in sections:
        if section.image.is_file():
            same[image_digest(section.image)].append(section)
    for group in same.values():
        for pair in combinations(sorted(group, key=lambda section: section.name), 2):
            fewer, more = sorted(pair, key=lambda section: len(section.centres))
            reach = fewer.pitch_um / 2 / min(fewer.mpp)
            far = cKDTree(more.centres).query(fewer.centres)[0]
            if np.mean(far <= reach) >= SHARE:
                yield Twins(pair[0].name, pair[1].name, "equal images")


def image_digest(path: Path) -> bytes:
    """Equal for files that are equal in size, beginning, middle and end."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, max(0, size // 2 - PART_BYTES // 2), max(0, size - PART_BYTES)):
            file.seek(start)
            digest.update(file.read(PART_BYTES))
    return digest.digest()


def content_digests(paths: Iterable[Path]) -> dict[Path, bytes]:
    """A digest of each file, which only equal files share: of its parts, and of all where two have equal parts."""
    parts = {path: image_digest(path) for path in paths}
    times = Counter(parts.values())
    return {path: part if times[part] == 1 else part + _whole_digest(path) for path, part in parts.items()}


def _whole_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def with_twins(names: Iterable[str], twins: Sequence[Twins]) -> list[str]:
    """The sections and their twins, sorted."""
    found = set(names)
    while more := {name for pair in twins for name in (pair.first, pair.second)
                   if {pair.first, pair.second} & found and name not in found}:  # fmt: skip
        found |= more
    return sorted(found)


def tied_patients(section: Labels, patient: Labels, twins: Sequence[Twins]) -> Labels:
    """The patients' labels. Patients who share a section have one label: their names, joined by +."""
    of = dict(zip(section.tolist(), patient.tolist(), strict=True))
    group = {name: {name} for name in of.values()}
    for pair in twins:
        if pair.first in of and pair.second in of:
            together = group[of[pair.first]] | group[of[pair.second]]
            group.update(dict.fromkeys(together, together))
    label = {name: "+".join(sorted(together)) for name, together in group.items()}
    return np.array([label[name] for name in patient.tolist()], dtype=object) if twins else patient
