"""Files of encoders: exported programs, TorchScript and published weights. None that would run pickled code is read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from stpredict.errors import ModelFileError, first_line
from stpredict.networks.encoder_weights import open_weights
from stpredict.networks.tensor_files import CUT_SHORT, is_cut_short, refuse_bomb, refuse_pretenders, refuse_values
from stpredict.networks.timm_vit import ViTReading

EXPORTED, SCRIPTED, CHECKPOINTS = (".pt2",), (".pt", ".ts"), (".safetensors", ".bin", ".pth")


def file_sha256(path: Path) -> str:
    """Raises ModelFileError if the file cannot be read."""
    try:
        known = path.stat()
        return _sha256(path, known.st_size, known.st_mtime_ns)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}).") from error


@lru_cache
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_encoder(path: Path, patch_px: int = 224, vit: ViTReading | None = None) -> nn.Module:
    """An encoder from pixels, N x 3 x P x P, to features, N x features, ready to run on the CPU.

    Published weights (.safetensors, .bin, .pth) are read as `vit` says, for patches of `patch_px`. Raises
    ModelFileError if it is none that can be read, nor an exported program (.pt2) nor TorchScript (.pt, .ts), or holds
    pickles.
    """
    if path.suffix not in (*EXPORTED, *SCRIPTED, *CHECKPOINTS):
        raise ModelFileError(
            f"{path.name}: not an encoder's file; save one with torch.export.save (.pt2) or torch.jit.save (.pt), or "
            "take published weights (.safetensors, .bin or .pth)."
        )
    if path.suffix not in CHECKPOINTS:
        return open_program(path, "an encoder")
    try:
        encoder = open_weights(path, vit, patch_px)
    except ModelFileError:
        raise
    except Exception as error:  # torch fails in many ways on a damaged file
        raise ModelFileError(f"{path.name}: cannot be read as an encoder ({first_line(error)}).") from error
    return encoder.requires_grad_(False)


def open_program(path: Path, what: str) -> nn.Module:
    """An exported program (.pt2) or TorchScript (.pt, .ts), ready to run on the CPU; `what` it is, for errors.

    The operators of a program are run, and no Python of its own. Raises ModelFileError for files of others, those that
    hold pickles, and weights without values.
    """
    refuse_pretenders(path)
    try:
        refuse_bomb(path)
        if path.suffix in EXPORTED:
            refuse_pickles(path)
            refuse_other_torch(path)
        with no_warnings_of_torch():
            program: nn.Module = (
                torch.export.load(path).module()
                if path.suffix in EXPORTED
                else torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
            )
    except ModelFileError:
        raise
    except Exception as error:  # torch fails in many ways on a damaged file
        reason = CUT_SHORT if is_cut_short(path, error) else first_line(error)
        raise ModelFileError(f"{path.name}: cannot be read as {what} ({reason}).") from error
    refuse_values(path, [*program.parameters(), *program.buffers()])
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    return program


def refuse_pickles(path: Path) -> None:
    """Raises ModelFileError if loading an exported program would unpickle anything but plain tensors."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                if any(entry["use_pickle"] is not False or entry.get("tensor_meta") is None for entry in entries):
                    raise ModelFileError(f"{path.name}: holds pickled objects, which are not read; export it anew.")
            elif "/sample_inputs/" in name:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        if not any(name.endswith("weights_config.json") for name in archive.namelist()):
            raise ModelFileError(f"{path.name}: not a program exported by torch 2.11 or later.")


def refuse_other_torch(path: Path) -> None:
    """Raises ModelFileError for a program in a format of exported programs that this torch does not know."""
    from torch._export.serde.schema import SCHEMA_VERSION  # slow to import

    ours = tuple(SCHEMA_VERSION)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/models/" in name and name.endswith(".json"):
                said = json.loads(archive.read(name)).get("schema_version", {})
                if said.get("major") != ours[0]:
                    theirs = f"{said.get('major')}.{said.get('minor')}"
                    raise ModelFileError(
                        f"{path.name}: exported by another torch (format {theirs}; torch {torch.__version__} reads "
                        f"{ours[0]}.{ours[1]}); export it anew with this one."
                    )


@contextmanager
def no_warnings_of_torch() -> Iterator[None]:
    """torch logs what it raises, too, at length, and newer ones advise whoever wrote TorchScript against it."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.disabled = before


def count_features(encoder: nn.Module, patch_px: int, name: str) -> int:
    """How many numbers an encoder gives of a patch. Raises ModelFileError if it does not give a row for each."""
    try:
        with torch.inference_mode():
            sizes = {tuple(encoder(torch.zeros(n, 3, patch_px, patch_px)).shape) for n in (2, 3)}
    except Exception as error:  # whatever the encoder raises
        raise ModelFileError(
            f"{name}: does not take batches of any number of patches of {patch_px} px ({first_line(error)})."
        ) from error
    widths = {shape[1] for shape in sizes if len(shape) == 2}
    if len(widths) != 1 or {shape[0] for shape in sizes} != {2, 3}:
        raise ModelFileError(f"{name}: gives {sorted(sizes)} of 2 and 3 patches, not a row of features for each.")
    return int(widths.pop())


def find_encoder(name: str, sha256: str, folders: Sequence[Path]) -> Path:
    """The encoder's file of this name and content in one of the folders. Raises ModelFileError if it is in none."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ModelFileError(f"the model's card names an encoder {name!r}, which is no file's name.")
    others = []
    for path in (folder / name for folder in folders):
        if path.is_file():
            if file_sha256(path) == sha256:
                return path
            others.append(path)
    if others:
        raise ModelFileError(f"{name}: not the encoder that the model was trained with (its sha256 is another).")
    raise ModelFileError(f"the model needs its encoder {name} beside it, or in the folder $STPREDICT_MODELS.")
