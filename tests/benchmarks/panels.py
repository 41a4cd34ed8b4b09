"""Genes of twelve Visium sections and three Xenium panels: what is trained on, and if Visium's genes suffer by it.

Counts are made up, moved by features that stand for an encoder's. Two sections of Visium are held out. The same genes
are trained on all other sections, and on Visium alone.

python tests/benchmarks/panels.py
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from stpredict.data.counts import in_memory
from stpredict.data.gene_mask import GeneMask
from stpredict.data.tiles import Tiles, shared_genes
from stpredict.machine import limit_threads
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.statistics.metrics import depth_controlled_correlation
from stpredict.training.one_network import express_held_out, train_network
from stpredict.training.panels import Panel
from stpredict.training.run import Run
from stpredict.training.settings import Settings

VISIUM, XENIUM = [f"V{i:02}" for i in range(12)], ["X0", "X1", "X2"]
HELD_OUT = VISIUM[:2]
SPOTS, GENES, VARYING, OF_A_PANEL, WIDTH = 150, 6000, 2000, 313, 128


def make_tiles() -> tuple[Tiles, np.ndarray]:
    """Sections without patches, two of a patient, and the features of their spots."""
    rng = np.random.default_rng(0)
    share = np.geomspace(1, 1e-3, GENES) ** 1.2
    load = np.zeros((6, GENES))
    load[:, :VARYING] = rng.normal(0, 0.25, (6, VARYING)) * (rng.random((6, VARYING)) < 0.5)
    caught = np.exp(np.random.default_rng(7).normal(0, 0.5, GENES))  # of each gene by Xenium
    names, parts, masks = [*VISIUM, *XENIUM], [], np.ones((15, GENES), dtype=bool)
    features = rng.normal(size=(len(names) * SPOTS, WIDTH))
    for i, name in enumerate(names):
        own = share * np.exp(rng.normal(0, 0.3, GENES))
        if name in XENIUM:
            masks[i] = np.isin(np.arange(GENES), rng.choice(VARYING, OF_A_PANEL, replace=False))
            own *= caught
        mean = own * np.exp(features[i * SPOTS : (i + 1) * SPOTS, :6] @ load)
        mean *= 8000 * np.exp(rng.normal(0, 0.5, (SPOTS, 1))) / mean.sum(axis=1, keepdims=True)
        parts.append(csr_array((rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)) * masks[i]).astype(np.float32)))
    section = np.repeat(np.array(names, dtype=object), SPOTS)
    patient = np.repeat(np.array([f"P{i // 2}" for i in range(len(names))], dtype=object), SPOTS)
    tiles = Tiles(
        Path(), 224, 0.5, 55.0, 100.0, section, section, patient, np.zeros((len(section), 2)),
        [f"G{i:04}" for i in range(GENES)], in_memory(vstack(parts)), np.empty(0, dtype=object), most_genes=GENES,
        measured=GeneMask(names, masks),
    )  # fmt: skip
    return tiles, features


def main() -> None:
    limit_threads(1)
    tiles, features = make_tiles()
    test = np.isin(tiles.section, HELD_OUT)
    network = Encoded(EncoderConfig(1, WIDTH, "made up", "0" * 64, (0.5,) * 3, (0.5,) * 3, 224))
    network.encoder = torch.nn.Identity()
    print(f"{len(shared_genes(tiles))} genes were measured in all {len(VISIUM) + len(XENIUM)} sections")
    for settings in (Settings("encoder"), Settings("encoder", objective="nb", head="linear")):
        run = Run(
            tiles, features, np.empty((0, 52)), Panel(), settings, "", torch.device("cpu"), print, network, features,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            mixed = train_network(run, [*VISIUM[2:], *XENIUM], [], None, Path(folder) / "mixed")
            of_mixed = replace(run, panel=Panel(mixed.panel))
            alone = train_network(of_mixed, VISIUM[2:], [], None, Path(folder) / "alone")
        counts, on_xenium = tiles.panel_counts(mixed.panel)[test], tiles.measured_by(XENIUM, mixed.panel).any(axis=0)
        print(f"{settings.objective}: {int((mixed.objective.depth > 0).sum())} of {len(test)} spots have a depth")
        for name, trained in (("all", mixed), ("Visium", alone)):
            expression = express_held_out(run, trained, np.flatnonzero(test))
            found = depth_controlled_correlation(expression, counts, trained.objective.depth[test], tiles.section[test])
            print(
                f"trained on {name}: held-out Visium {np.nanmean(found[~on_xenium]):.4f} in {(~on_xenium).sum()} genes "
                f"that Xenium lacks, {np.nanmean(found[on_xenium]):.4f} in the others"
            )


if __name__ == "__main__":
    main()
