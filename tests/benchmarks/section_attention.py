"""Peak memory of HisToGene's and Hist2ST's attention over all spots of a very large slide, from random tokens.

Keys and values are made of all spots, and the first QUERIES of these read them. What the others would become is held
from the start, as memory does not grow when they read too. Hist2ST's graph and LSTM are of one of the parts in which
spots are read, in the middle of the slide. Beside each peak, which is of a process of its own, stands what the process
took before there were tokens.

python tests/benchmarks/section_attention.py [SPOTS] [QUERIES]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import torch

from stpredict.machine import processor_name
from stpredict.networks import architecture_config, make_network
from stpredict.networks.hist2st import GRAPH_ROWS, Hist2ST, nearest_spots, row_by_row
from stpredict.networks.mixing import Block

GIB = 1 << 20  # in KiB, in which Linux counts
GENES = 250


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def measure(part: str, n_spots: int, n_queries: int) -> tuple[float, float, float]:
    """Peak memory before and after, in GiB, and processor seconds; `part` is an architecture, or its graph."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = make_network(architecture_config(part.partition(" ")[0], n_genes=GENES)).eval()
    before, started = peak_gib(), time.process_time()
    width = network.head.in_features
    with torch.inference_mode():
        tokens = torch.randn(1, n_spots, width)
        if isinstance(network, Hist2ST) and part.endswith("graph"):
            across = int(n_spots**0.5) + 1
            number = torch.arange(n_spots)
            cells = torch.stack([number // across, number % across], dim=1)
            part_of_spots = row_by_row(cells)[n_spots // 2 :][:GRAPH_ROWS]
            become = torch.ones(n_spots, width)
            become[part_of_spots] = network.follow(part_of_spots, tokens[0], *nearest_spots(cells))
        else:
            assert not isinstance(network.blocks, torch.Tensor)
            block = network.blocks[0]
            assert isinstance(block, Block)
            become = torch.ones(1, n_spots, width)
            become[:, :n_queries] = block(tokens[:, :n_queries], context=tokens)
        assert bool(torch.isfinite(become).all())
    return before, peak_gib(), time.process_time() - started


def main(spots: str = "80000", queries: str = "1024") -> None:
    print(f"{processor_name()}, 1 thread, {int(spots):,} spots, {int(queries):,} of which read all")
    for part in ("histogene", "hist2st", "hist2st graph"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after, seconds = pool.apply(measure, (part, int(spots), int(queries)))
        print(f"{part:16}{after:6.2f} GiB, {before:.2f} before; {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main(*sys.argv[1:])
