"""The optimiser and the schedule of a recipe."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from stpredict.training.recipes import Recipe


def make_optimiser(network: nn.Module, how: Recipe, learning_rate: float, weight_decay: float) -> Optimizer:
    """A recipe's optimiser for all parameters of a network that are trained."""
    parameters = network.parameters()
    if how.optimiser == "sgd":
        return torch.optim.SGD(parameters, learning_rate, momentum=how.momentum, weight_decay=weight_decay)
    kind = torch.optim.AdamW if how.optimiser == "adamw" else torch.optim.Adam
    on_gpu = next(network.parameters()).device.type == "cuda"
    return kind(parameters, learning_rate, weight_decay=weight_decay, fused=on_gpu or None)  # a kernel for all tensors


def make_schedule(
    optimiser: Optimizer, how: Recipe, learning_rate: float, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """A recipe's schedule, to be called after every step."""
    if how.schedule == "one-cycle":
        return OneCycleLR(optimiser, learning_rate, total_steps=steps_per_epoch * epochs)
    if how.schedule == "steps":
        return StepLR(optimiser, how.step_epochs * steps_per_epoch, how.step_factor)
    return LambdaLR(optimiser, lambda _step: 1.0)
