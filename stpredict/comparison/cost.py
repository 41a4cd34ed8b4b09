"""What a network costs: its parameters, and the multiplications of one spot."""

from __future__ import annotations

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stpredict.networks import Network
from stpredict.networks.dictionary import Dictionary
from stpredict.slides.views import Views, patch_shape


def parameters(network: Network) -> int:
    """How many numbers it has learnt, frozen ones included. Those of a dictionary are torch buffers, not parameters."""
    learnt = list(network.parameters())
    return sum(tensor.numel() for tensor in (*learnt, *(network.buffers() if isinstance(network, Dictionary) else ())))


def multiplications(network: Network, patch_px: int, views: Views) -> int:
    """Multiplications of convolutions and matrix products, attention's among them, to predict one spot by itself.

    A network that looks at a whole slide gets a slide of this one spot.
    """
    alone = copy.deepcopy(network).cpu().eval()
    patches = torch.zeros((1, *patch_shape(patch_px, views)), dtype=torch.uint8)
    # Not every device counts fused attention; all count it as matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        alone(patches)
    return int(counter.get_total_flops() // 2)
