"""Weights of a ResNet18 that the user has: torchvision's of ImageNet, or others' of histology under the same names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stpredict.errors import ModelFileError, first_line
from stpredict.networks.tensor_files import read_tensors
from stpredict.networks.triplex import Trunk

#: A tensor that every ResNet18 has; what stands before it stands before all, such as "module." or "model.resnet.".
KNOWN = "layer1.0.conv1.weight"


def read_trunk(path: Path) -> dict[str, Tensor]:
    """The tensors of a ResNet18's trunk, of .safetensors or of what torch saved; a classifier is left out.

    Nothing in the file is executed. Raises ModelFileError if it holds pickled code, or no ResNet18.
    """
    loaded = read_tensors(path)
    prefix = next((name.removesuffix(KNOWN) for name in loaded if name.endswith(KNOWN)), None)
    if prefix is None:
        raise ModelFileError(f"{path.name}: holds no ResNet18 (no tensor {KNOWN}, as torchvision calls it).")
    trunk = Trunk()
    wanted = trunk.state_dict()
    tensors = {name: loaded[prefix + name] for name in wanted if prefix + name in loaded}
    tensors |= {name: tensor for name, tensor in wanted.items() if name.endswith("num_batches_tracked")}
    try:
        trunk.load_state_dict(tensors)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ModelFileError(f"{path.name}: not the tensors of a ResNet18 ({first_line(error)}).") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in trunk.state_dict().values()):
        raise ModelFileError(f"{path.name}: some of its weights are not finite.")
    return trunk.state_dict()
