"""A picture of how a network was trained."""

from __future__ import annotations

from pathlib import Path

from stpredict.storage.files import atomic_path
from stpredict.training.log import Log


def draw_curves(log: Log, path: Path) -> None:
    """Write a PNG of the loss and the validation score over the epochs of each stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage in dict.fromkeys(row["stage"] for row in log.rows):
        rows = [row for row in log.rows if row["stage"] == stage]
        lost = [row for row in rows if row["loss"]]  # a network that was only taught has no loss on spots
        left.plot([row["epoch"] for row in lost], [float(row["loss"]) for row in lost], "o-", label=stage)
        scored = [row for row in rows if row["validation"]]
        if scored:
            right.plot(
                [row["epoch"] for row in scored], [float(row["validation"]) for row in scored], "o-", label=stage
            )
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="validation depth-controlled correlation")
    left.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
