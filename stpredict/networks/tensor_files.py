"""Files of plain tensors: .safetensors, or what torch saved. Nothing in them is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from stpredict.errors import ModelFileError

#: Far more than there is code in a network, which alone is compressed in torch's archives.
MAX_CODE_BYTES = 64 << 20


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name.

    Raises ModelFileError if the file is missing or damaged, or holds pickled code.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file of weights.")
    try:
        refuse_bomb(path)
        if path.suffix == ".safetensors":
            # Of its own memory: what is mapped from a file ends the process if another shortens that.
            loaded: Any = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:  # torch fails in many ways on a damaged file
        raise ModelFileError(
            f"{path.name}: not a file of plain tensors, or a damaged one; it was not opened. Save its state dict anew."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    return {str(name): tensor for name, tensor in entries if isinstance(tensor, Tensor)}


def refuse_bomb(path: Path) -> None:
    """Raises ModelFileError for an archive that unpacks to far more than its size; torch compresses only code."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(member.file_size for member in archive.infolist())
        if n_bytes > MAX_CODE_BYTES + 2 * path.stat().st_size:
            raise ModelFileError(f"{path.name}: unpacks to {n_bytes / 1e6:,.0f} MB, as no file of torch's does.")
