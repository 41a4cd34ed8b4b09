"""A small encoder, and how to write one to a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class Tiny(nn.Module):
    """Mean colour and edges of patches."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.edges = nn.Conv2d(3, width, 7, stride=4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([pixels.mean(dim=(2, 3)), self.edges(pixels).abs().mean(dim=(2, 3))], dim=1)


def export(path: Path, encoder: nn.Module, px: int = 32, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.export.save(torch.export.export(encoder.eval(), (torch.rand(2, 3, px, px),), dynamic_shapes=shapes), path)
    return path
