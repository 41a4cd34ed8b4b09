"""The log of one network's training, for people and as a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stpredict.console import Report
from stpredict.storage.files import atomic_path
from stpredict.training.processes import is_main_process

LOG_COLUMNS = ("stage", "epoch", "loss", "validation", "seconds")


@dataclass
class Log:
    """The training log of one network: a CSV file, rewritten whole after each epoch."""

    path: Path
    report: Report
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]

    def add(self, stage: str, epoch: int, loss: float | None, seconds: float, validation: float | None = None) -> None:
        """Note an epoch. The 0th, without a loss, is the network as it begins."""
        self.rows = [row for row in self.rows if row["stage"] != stage or row["epoch"] < epoch]
        lost, shown = ("" if loss is None else f"{loss:.5f}"), ("" if validation is None else f"{validation:.4f}")
        self.rows.append(dict(zip(LOG_COLUMNS, (stage, epoch, lost, shown, f"{seconds:.0f}"), strict=True)))
        told = [f"loss {loss:.4f}"] if loss is not None else []
        told += [f"validation depth-controlled correlation {shown}"] if shown else []
        self.report(f"{stage} epoch {epoch}: {', '.join(told)} ({seconds:.0f} s)")
        if is_main_process():
            with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, LOG_COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

    def has(self, stage: str) -> bool:
        """Is there an epoch of the stage, of this call or of an earlier one that was killed?"""
        return any(row["stage"] == stage for row in self.rows)

    def best_epoch(self, stage: str) -> int | None:
        """The epoch with the best validation score."""
        scored = [
            (float(row["validation"]), -row["epoch"])
            for row in self.rows
            if row["stage"] == stage and row["validation"]
        ]
        return -max(scored)[1] if scored else None
