"""A folder like HEST-1k's: 200 sections of five technologies, two of them broken, 60 without a patient.

`stpredict train` is killed twice on it, goes on, and ends with a card that says what was measured where. Patches and
counts are made up; a small encoder describes patches, as networks are not what is tried here.

python tests/benchmarks/hest_like.py [--spots 24] [--genes 6000] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import nn

#: By technology: sections, genes of a panel (0: all genes), number of panels, spot diameter and pitch as HEST says.
PLAN = (
    ("Visium", 100, 0, 1, 55.0, 100.0),
    ("Xenium", 40, 400, 3, None, None),
    ("Xenium", 10, 5000, 3, None, None),
    ("Visium HD", 25, 0, 1, 2.0, 2.0),
    ("Spatial Transcriptomics", 25, 0, 1, 100.0, 200.0),
)
PITCH_UM = {"Visium": 100.0, "Xenium": 100.0, "Visium HD": 128.0, "Spatial Transcriptomics": 200.0}
ANONYMOUS, BROKEN, WIDTH, PATCH_PX = 60, ("S050", "S120"), 61, 224
#: A call is killed as soon as one of these files of its run is there, the next call at the next one.
KILLED_AT = ("features.npz", "fold-2/scores.json")


class Small(nn.Module):
    """Mean colours and edges of patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.edges = nn.Conv2d(3, WIDTH, 8, stride=8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([pixels.mean(dim=(2, 3)), self.edges(pixels).abs().mean(dim=(2, 3))], dim=1)


def make_folder(folder: Path, spots: int, genes: int) -> None:
    """Sections whose counts follow the colour of their patches, each in the genes that it measured."""
    for name in ("st", "patches", "metadata"):
        (folder / name).mkdir(parents=True)
    share = np.geomspace(1, 1e-3, genes)
    load = np.random.default_rng(7).normal(0, 0.4, (3, genes))
    rows, number = [], 0
    for technology, sections, measured, panels, diameter, pitch in PLAN:
        for _ in range(sections):
            name, rng = f"S{number:03}", np.random.default_rng(number)
            of_panel = np.random.default_rng((measured, number % panels))
            own = np.sort(of_panel.choice(genes, min(measured, genes), replace=False)) if measured else np.arange(genes)
            colour = rng.uniform(0, 1, (spots, 3))
            mean = share[own] * np.exp((colour - 0.5) @ load[:, own]) * np.exp(rng.normal(0, 0.3, len(own)))
            depth = rng.lognormal(np.log(1200 if technology == "Xenium" else 8000), 0.4, (spots, 1))
            counts = rng.poisson(depth * mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)
            noise = rng.integers(-30, 31, (spots, PATCH_PX, PATCH_PX, 3))
            patches = np.clip(100 + 120 * colour[:, None, None] + noise, 0, 255).astype(np.uint8)
            write_section(folder, name, counts, [f"G{i:05}" for i in own], patches, PITCH_UM[technology])
            facts = {
                "id": name, "st_technology": technology, "species": "Homo sapiens", "organ": "Breast",
                "patient": None if number < ANONYMOUS else f"Patient {number // 2}",
                "dataset_title": f"study {number // 6}", "pixel_size_um_estimated": 0.5, "spot_diameter": diameter,
                "inter_spot_dist": pitch,
            }  # fmt: skip
            (folder / "metadata" / f"{name}.json").write_text(json.dumps(facts))
            rows.append(facts)
            number += 1
    pd.DataFrame(rows).to_csv(folder / "HEST_v1_3_0.csv", index=False)
    for name in BROKEN:
        os.truncate(folder / "st" / f"{name}.h5ad", 20_000)


def write_section(
    folder: Path, name: str, counts: np.ndarray, genes: list[str], patches: np.ndarray, pitch_um: float
) -> None:
    spots = [f"b{i:05}-1" for i in range(len(counts))]
    side = int(np.ceil(len(spots) ** 0.5))
    places = np.arange(len(spots))
    centres = np.c_[places % side, places // side] * pitch_um / 0.5 + 500
    data = anndata.AnnData(csr_matrix(counts), pd.DataFrame(index=spots), pd.DataFrame(index=genes))
    data.obsm["spatial"] = centres
    data.write_h5ad(folder / "st" / f"{name}.h5ad")
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        file["img"], file["coords"] = patches, centres.astype(int)
        file["barcode"] = np.array(spots, dtype="S10")[:, None]


def command(folder: Path, out: Path, encoder: Path) -> list[str]:
    options = f"--encoder {encoder} --mpp 0.5 --folds 3 --threads 1 --skip-broken"
    return [sys.executable, "-m", "stpredict", "train", str(folder), "-o", str(out), *options.split()]


def train(call: list[str], out: Path, kill_at: str | None) -> tuple[int, float, str]:
    """A call's exit code (-9: killed as soon as a file of the run was there), seconds and what it says."""
    started, log = time.monotonic(), out.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(call, stdout=file, stderr=file)
        while process.poll() is None:
            if kill_at and (out.with_suffix(".run") / kill_at).exists():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
    return process.returncode, time.monotonic() - started, log.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=24, help="of each section")
    parser.add_argument("--genes", type=int, default=6000)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = asked.folder or Path(temporary)
        data, out, encoder = place / "hest", place / "t.safetensors", place / "small.pt2"
        if not data.exists():
            make_folder(data, asked.spots, asked.genes)
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.export.export(Small().eval(), (torch.rand(2, 3, PATCH_PX, PATCH_PX),), dynamic_shapes=shapes)
        torch.export.save(program, encoder)
        call = command(data, out, encoder)
        planned = subprocess.run([*call, "--dry-run"], capture_output=True, text=True, check=False)
        print(planned.stdout)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for kill_at in (*KILLED_AT, None):
            code, seconds, said = train(call, out, kill_at)
            print(f"\n## call, {'killed at ' + kill_at if kill_at else 'to the end'}: exit {code}, {seconds:.0f} s")
            print("\n".join(line[:200] for line in said.splitlines()[-25:]))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"\n{used.ru_utime - before.ru_utime:.0f} CPU s in all, {used.ru_maxrss / 2**20:.2f} GiB at most")
        print(f"\n## models show, after {int(subprocess.check_output(['du', '-sm', place]).split()[0])} MB of disk")
        subprocess.run([sys.executable, "-m", "stpredict", "models", "show", str(out)], check=True)


if __name__ == "__main__":
    main()
