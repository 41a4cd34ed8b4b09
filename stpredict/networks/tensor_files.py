"""Files of plain tensors: .safetensors, or what torch saved. Nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from stpredict.errors import ModelFileError

#: Far more than there is code in a network, which alone is compressed in torch's archives.
MAX_CODE_BYTES = 64 << 20
#: Of a file's beginning, what is looked at to tell what it is.
PEEK_BYTES = 512
#: What a file begins with, in small letters, that is a pointer of Git LFS, or that a server sent instead of weights.
LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = (
    b"<!doctype html",
    b"<html",
    b"<?xml",
    b'{"error',
    b"access to model",
    b"invalid username",
    b"entry not found",
)
CUT_SHORT = "its end is missing, as where a download broke off; download it again"
ON_META = 'its weights have no values (they were saved from the device "meta"); save them anew once they are loaded.'


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name.

    Raises ModelFileError if the file is missing or damaged, or holds pickled code.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file of weights.")
    refuse_pretenders(path)
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
        if is_cut_short(path, error):
            raise ModelFileError(f"{path.name}: cannot be read ({CUT_SHORT}).") from error
        raise ModelFileError(
            f"{path.name}: not a file of plain tensors, or a damaged one; it was not opened. Save its state dict anew."
        ) from error
    for nested in ("state_dict", "model_state", "model", "teacher"):  # the last as DINO saves it
        if isinstance(loaded, dict) and isinstance(loaded.get(nested), dict):
            loaded = loaded[nested]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(name): tensor for name, tensor in entries if isinstance(tensor, Tensor)}
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ModelFileError(f"{path.name}: {ON_META}")
    return tensors


def refuse_pretenders(path: Path) -> None:
    """Raises ModelFileError, with what to do, for what downloads leave in the place of weights."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begins = file.read(PEEK_BYTES).lstrip().lower()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}).") from error
    if begins.startswith(LFS_POINTER):
        raise ModelFileError(f"{path.name}: a Git LFS pointer, not the weights, which `git lfs pull` gets.")
    if begins.startswith(WEB_PAGE):
        raise ModelFileError(
            f"{path.name}: a web page or a server's message, not weights; accept the licence there, log in, and "
            "download the file again."
        )
    if not size:
        raise ModelFileError(f"{path.name}: empty; download it again.")


def is_cut_short(path: Path, error: Exception) -> bool:
    """Is what went wrong with a file that it ends too soon? Archives have their table of contents at the end."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    return (is_archive and not zipfile.is_zipfile(path)) or "incomplete" in str(error).lower()


def refuse_values(path: Path, tensors: Iterable[Tensor]) -> None:
    """Raises ModelFileError for tensors without values, or with some that are no numbers."""
    for tensor in tensors:
        if tensor.is_meta:
            raise ModelFileError(f"{path.name}: {ON_META}")
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise ModelFileError(f"{path.name}: some of its weights are not numbers (NaN).")


def refuse_bomb(path: Path) -> None:
    """Raises ModelFileError for an archive that unpacks to far more than its size; torch compresses only code."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(member.file_size for member in archive.infolist())
        if n_bytes > MAX_CODE_BYTES + 2 * path.stat().st_size:
            raise ModelFileError(f"{path.name}: unpacks to {n_bytes / 1e6:,.0f} MB, as no file of torch's does.")
