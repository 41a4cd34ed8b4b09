"""Three patients at 3.2 um per pixel, the resolution of patient A's pictures: prints tables for accuracy.md.

    python tests/benchmarks/accuracy_three.py SHARED_FOLDER SCRATCH_FOLDER [ROW...]

Each patient is predicted from the other two, and from each of them alone, by rows of accuracy.py; predictions are kept
in SCRATCH_FOLDER.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from accuracy import predict_row
from accuracy_networks import DENSE, QUICK
from accuracy_splits import Cut, Part, open_part, open_tiles, save
from accuracy_tables import score_rows
from three_patients import write_three_patients

from stpredict.machine import usable_cores
from stpredict.statistics import metrics
from stpredict.statistics.colour_texture import colour_texture_features

CUT = Cut(3.2, 48)
PATIENTS = {"A": ["A1", "A2"], "B": ["B4"], "C": ["C2", "C3", "C4", "C5"]}
#: Tested and trained on: both others, and each alone.
SPLITS = {
    f"{tested} from {'+'.join(trained)}": ([name for one in trained for name in PATIENTS[one]], PATIENTS[tested])
    for tested in PATIENTS
    for others in [[one for one in PATIENTS if one != tested]]
    for trained in (others, others[:1], others[1:])
}
ROWS = {
    "ridge": "52 features, ridge",
    "dictionary-all": "dictionary, programmes of all counts",
    "m2ort-three": "M2ORT-Small with two encoders, taught densely: 36 tokens of 8 px",
}
GAINS = [row for row in ROWS if row != "ridge"]
#: Its patches are those of the parts.
DENSE["m2ort-three"] = (QUICK, ROWS["m2ort-three"], None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help=", ".join(ROWS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=[*SPLITS])
    parser.add_argument("--threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = open_three(arguments.shared, arguments.scratch)
    for split in arguments.splits:
        for row in arguments.rows or ROWS:
            path = parts[split].scratch / f"{row}-0.npy"
            if not path.exists():
                save(path, predict_row(row, parts[split], 0, arguments.shared))
    print("\n".join(table(parts)))


def table(parts: Mapping[str, Part]) -> Iterator[str]:
    """A line per split: each row's depth-controlled correlation and, with its interval over tissue, what it gains."""
    titles = [
        "predicted",
        "spots",
        "genes",
        "ceiling",
        *(f"`{row}`" for row in ROWS),
        *(f"`{r}` - ridge" for r in GAINS),
    ]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for split, part in parts.items():
        found = score_rows(part, ROWS)
        c, d, s = part.counts[part.test], part.tiles.depth[part.test], part.tiles.section[part.test]
        cells = [split, str(len(d)), str(len(part.panel)), f"{np.nanmean(metrics.noise_ceiling(c, d, s)):.3f}"]
        cells += [f"{found[row].depth_controlled.mean():.3f}" if row in found else "" for row in ROWS]
        for row in GAINS:
            one = found.get(row)
            cells.append(f"{one.gain:+.3f} ({one.interval[0]:+.3f} to {one.interval[1]:+.3f})" if one else "")
        yield f"| {' | '.join(cells)} |"


def open_three(shared: Path, scratch: Path) -> dict[str, Part]:
    """The splits of three patients. The unlabelled patches' 52 features are not needed, and empty."""
    dataset = scratch / "three"
    if not dataset.exists():
        write_three_patients(shared, dataset)
    tiles = open_tiles(shared, scratch, cut=CUT, dataset=dataset)
    cache = scratch / "three-features.npy"
    if not cache.exists():
        save(cache, colour_texture_features(tiles.read_patch(i) for i in range(len(tiles.spot))))
    return {split: open_part(split, tiles, np.load(cache), np.empty((0, 52)), scratch, SPLITS) for split in SPLITS}


if __name__ == "__main__":
    main()
