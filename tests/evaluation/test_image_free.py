from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import GENES, write_section

from stpredict.data.her2st import read_her2st

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "image_free.py"
#: One of them is counted nowhere.
PANEL = ["COL1A1", "DDX5", "GNAS", "KRT19", "NOWHERE"]


def scores_leaving_one_out(folder: Path, of_panel: bool) -> tuple[float, float]:
    """Mean over patients of the mean over spots of correlation across genes, and of RMSE, spot by spot."""
    values: dict[str, list[np.ndarray]] = {}
    for section in read_her2st(folder, require_images=False):
        every = section.counts.rows().toarray().astype(float)
        counts = np.zeros((len(every), len(PANEL)))
        for i, gene in enumerate(PANEL[:-1]):
            counts[:, i] = every[:, section.genes.index(gene)]
        kept = counts.sum(axis=1) >= of_panel
        depth = (counts if of_panel else every).sum(axis=1, keepdims=True)
        values.setdefault(section.patient, []).append(np.log(1 + 1e6 * counts[kept] / depth[kept]))
    scores = []
    for patient, own in values.items():
        others = np.concatenate([part for name, parts in values.items() if name != patient for part in parts])
        mean = others.mean(axis=0)
        spots = np.concatenate(own)
        r = [np.corrcoef(mean, spot)[0, 1] for spot in spots if spot.any()]
        rmse = [np.sqrt(np.mean((mean - spot) ** 2)) for spot in spots]
        scores.append((np.mean(r), np.mean(rmse)))
    return tuple(np.mean(scores, axis=0))


def test_the_means_of_other_patients_are_scored_as_they_should_be(tmp_path: Path):
    rng = np.random.default_rng(0)
    for seed, name in enumerate(("A1", "A2", "B1", "C1")):
        image = rng.integers(0, 255, (2000, 2000, 3), dtype=np.uint8)
        write_section(tmp_path, name, image, seed, depth=0.1)  # so shallow that spots are without counts
        (tmp_path / f"{name}.jpg").unlink()
    assert set(PANEL[:-1]) < set(GENES)
    (tmp_path / "genes.txt").write_text("\n".join(PANEL))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "genes.txt", tmp_path], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 sections of 3 patients, ")
    assert int(lines[1].split()[0]) > 0
    (line,) = [line for line in lines if line.startswith("training mean, leaving one patient out")]
    printed = line.split()[-4:]
    expected = [
        text
        for of_panel in (False, True)
        for r, rmse in [scores_leaving_one_out(tmp_path, of_panel)]
        for text in (f"{r:.3f}", f"({rmse:.2f})")
    ]
    assert printed == expected
    assert printed[:2] != printed[2:]
