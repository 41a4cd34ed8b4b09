"""Model files: weights and their card in one safetensors file."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from stpredict.errors import ModelFileError
from stpredict.slides.views import Views, patch_shape, views_fit, views_of
from stpredict.statistics.colour_texture import N_FEATURES
from stpredict.statistics.conformal import LEVELS
from stpredict.storage.files import atomic_path

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 64 << 20
#: No network of this kind is wider or deeper, or predicts more genes.
MAX_SIZE = 100_000
#: Tensors outside the network: colour and texture features of training patches, n x 52, and the part in which each
#: patch is left out;
REFERENCE = "reference_"
REFERENCE_FEATURES, REFERENCE_PART = "reference_features", "reference_part"
#: a linear map, directions x features, from the head's input to coordinates of length 1 at the bound of the usual;
REFERENCE_WEIGHT, REFERENCE_BIAS = "reference_weight", "reference_bias"
#: the model's output for two fixed images when it was made, 2 x genes;
SELF_TEST = "reference_self_test"
#: and a third image, from its publisher, whose published outputs are a further row, NaN for those not published.
PUBLISHED_IMAGE = "reference_published_image"
#: Published heads whose networks look at all spots of a slide.
HEADS_READING_SLIDES = ("stpath", "deepspot", "histoprism")

#: Key of the scores that a model got after it was made: part of the card in memory, but not of its checksum.
NOTES = "notes"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Model:
    """A model file, read and checked."""

    path: Path
    card: dict[str, Any]
    tensors: dict[str, Array]
    sha256: str

    @property
    def name(self) -> str:
        return str(self.card["name"])

    @property
    def panel(self) -> list[str]:
        return list(self.card["panel"])

    @property
    def views(self) -> Views:
        return views_of(self.card["parameters"])

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of the network's input for one spot."""
        return patch_shape(self.card["patch_px"], self.views)

    @property
    def fp32_only(self) -> bool:
        """Does its network need fp32, because lower precisions are too coarse for it or were not tried?"""
        return self.reads_slide or self.card["parameters"].get("network") in ("dictionary", "triplex", "bleep", "egn")

    @property
    def reads_slide(self) -> bool:
        """Does its network look at all spots of a slide, so that it runs in two passes?"""
        parameters = self.card["parameters"]
        if self.is_published:
            return (parameters.get("head") or {}).get("kind") in HEADS_READING_SLIDES
        of_all = parameters.get("network") in ("histogene", "hist2st", "hipt", "istar")
        return of_all or bool(parameters.get("network") == "triplex" and parameters.get("reads") != ["target"])

    def read_diameter_um(self, pitch_um: float) -> float:
        """The width of tissue that a prediction stands for at this pitch: a spot, or less if the network can."""
        diameter_um = float(self.card["spot_diameter_um"])
        return min(diameter_um, pitch_um) if self.card["parameters"].get("network") == "istar" else diameter_um

    @property
    def is_published(self) -> bool:
        """Is its network an encoder with a head that others published?"""
        return bool(self.card["parameters"].get("network") == "published")

    def network_tensors(self) -> dict[str, Array]:
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(REFERENCE)}


def save_model(path: Path, tensors: Mapping[str, Array], card: Mapping[str, Any]) -> None:
    """Write a model file with a checksum over card and tensors, but not over the card's `notes`."""
    of_model = {key: value for key, value in card.items() if key != NOTES}
    text = json.dumps({**of_model, "format_version": FORMAT_VERSION}, sort_keys=True, allow_nan=False)
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"stpredict": text, "sha256": _checksum(text, arrays)}
    if card.get(NOTES):
        metadata[NOTES] = json.dumps(card[NOTES], allow_nan=False)
    try:
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.numpy.save_file(arrays, temporary, metadata)
            temporary.chmod(mode)  # save_file lets only its owner read it
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{path}: cannot be written ({error}).") from error


def load_model(path: Path) -> Model:
    """Read a model file. Raises ModelFileError if it is missing, damaged, or not one."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file.")
    if path.suffix in {".pth", ".pt", ".ckpt"}:
        raise ModelFileError(f"{path.name}: a checkpoint; bring it in with `stpredict models import`.")
    try:
        with path.open("rb") as raw:
            if int.from_bytes(raw.read(8), "little") > MAX_HEADER_BYTES:
                from stpredict.networks.tensor_files import refuse_pretenders  # imports torch

                refuse_pretenders(path)
                raise ModelFileError(f"{path.name}: not a model file, or a damaged one (its header is too large).")
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if "stpredict" not in metadata:
                raise ModelFileError(f"{path.name}: holds no model card, so it is not a model of this program.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        card = json.loads(metadata["stpredict"])
        sha256 = _checksum(metadata["stpredict"], tensors)
        notes = json.loads(metadata.get(NOTES, "[]"))
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path.name}: not a model file, or a damaged one ({error}).") from error
    if sha256 != metadata.get("sha256"):
        raise ModelFileError(f"{path.name}: damaged: its checksum does not agree; fetch the file again.")
    try:
        if card["format_version"] > FORMAT_VERSION:
            raise ModelFileError(f"{path.name}: made by a newer version of stpredict; please update.")
        if notes:
            card[NOTES] = notes
        check_card(card, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileError(f"{path.name}: its card is not a model's ({type(error).__name__}: {error}).") from error
    return Model(path, card, tensors, sha256)


def check_card(card: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Raise ValueError, or any error of a wrong type, for a card that the program cannot use.

    Anyone can write a card with a valid checksum, so values for allocating and drawing must be plausible.
    """
    panel = card["panel"]
    count = len(panel)

    def demand(what: str, holds: bool) -> None:
        if not holds:
            raise ValueError(what)

    demand("panel", count > 0 and len(set(panel)) == count)
    # HDF5 holds neither NUL nor half a character, and a line of a table no line break.
    demand("gene names", all(isinstance(gene, str) and gene and gene.isprintable() for gene in panel))
    demand("name and unit", all(isinstance(card[key], str) for key in ("name", "architecture", "expression_unit")))
    demand("name", can_name_files(card["name"]))
    demand("patch_px", card["patch_px"] == card["parameters"]["patch_px"] and 16 <= card["patch_px"] <= 4096)
    demand("views", views_fit(views_of(card["parameters"]), card["patch_px"]))
    demand("mpp", 0.05 <= card["mpp"] <= 50)
    demand("spot diameter and pitch", 1 <= card["spot_diameter_um"] <= 5000 and 1 <= card["pitch_um"] <= 5000)
    said = list(card["parameters"].values())
    said += [part for value in said if isinstance(value, dict) for part in value.values()]
    listed = [value if isinstance(value, list | tuple) else [value] for value in said]
    sizes = [size for values in listed for size in values if isinstance(size, int)]
    demand("parameters", max(sizes) <= MAX_SIZE)
    for key in ("training_mean", "training_spread"):
        values = card["genes"][key]
        demand(key, values is None or np.asarray(values, dtype=float).shape == (count,))
    ranges = card["genes"]["display_range"]
    if ranges is not None:
        low, high = np.asarray(ranges, dtype=float)
        demand("display range", low.shape == (count,) and bool((low < high).all()))
    for note in card.get(NOTES, []):
        demand("notes", all(isinstance(note[key], str) for key in ("whose", "data_set", "noted")))
        demand("notes", all(isinstance(note[key], int) for key in ("spots", "sections", "patients")))
        numbers = [*note["scores"].values(), *(note.get("ridge") or {}).values()]
        demand("notes", all(value is None or isinstance(value, int | float) for value in numbers))
    demand("training and use", isinstance(card["training"], dict) and isinstance(card["intended_use"], str))
    for fold in card["held_out"]:
        demand("held-out part", fold["kind"] in ("patient", "section"))
        demand("held-out genes", np.asarray(fold["per_gene"]["correlation"], dtype=float).shape == (count,))
    for one in card.get("intervals", []):
        demand("intervals", one["level"] in LEVELS and np.asarray(one["half_width"], dtype=float).shape == (count,))
        told = (one["median_half_width"], 0.0 if one["coverage"] is None else one["coverage"])
        demand("intervals", all(isinstance(value, int | float) for value in told))
    for key, dtype in (("measured_in_training", bool), ("measured_in_sections", int), ("measured_in_patients", int)):
        measured = card["genes"].get(key)
        demand("measured genes", measured is None or np.asarray(measured, dtype=dtype).shape == (count,))
    tested = tensors.get(SELF_TEST)
    image, n_tested = tensors.get(PUBLISHED_IMAGE), 3 if PUBLISHED_IMAGE in tensors else 2
    if tested is not None:
        demand("self-test", tested.shape == (n_tested, count) and bool(np.isfinite(tested[:2]).all()))
    if image is not None:
        demand("published image", image.shape == (*2 * (card["patch_px"],), 3) and image.dtype == np.uint8)
    published = card.get("published", {})
    demand("published", all(isinstance(value, str | bool | None) for value in published.values()))
    reference = tensors.get(REFERENCE_FEATURES)
    demand("reference features", reference is None or (reference.ndim == 2 and reference.shape[1] == N_FEATURES))
    part = tensors.get(REFERENCE_PART)
    if part is not None:
        fits = reference is not None and part.shape == reference.shape[:1] and part.dtype.kind in "iu"
        demand("parts of the reference", fits)
    weight, bias = tensors.get(REFERENCE_WEIGHT), tensors.get(REFERENCE_BIAS)
    if weight is not None and bias is not None:
        head = tensors["head.weight" if "head.weight" in tensors else "head.bank.keys"]
        demand("reference of what the head reads", weight.shape == (*bias.shape, *head.shape[1:]) and bias.ndim == 1)
        demand("reference of what the head reads", bool(np.isfinite(weight).all() and np.isfinite(bias).all()))


def can_name_files(name: str) -> bool:
    """Is this a valid name for a model? It becomes part of the names of files."""
    return bool(name) and name.isprintable() and name[0] != "." and not set(name) & set("/\\:")


def models_folders() -> list[Path]:
    """The folders in which models are found by name: $STPREDICT_MODELS, then those of the program itself."""
    here = Path(__file__).parents[1]
    packaged = here / "models" if (here / "models").is_dir() else here.parent / "models"
    own = os.environ.get("STPREDICT_MODELS")
    return [*([Path(own)] if own else []), packaged]


def list_models() -> dict[str, Path]:
    """Names of the installed models and their files, without the encoders' weights beside them."""
    found: dict[str, Path] = {}
    for folder in models_folders():
        for path in sorted(folder.glob("*.safetensors")):
            if not lacks_card(path):
                found.setdefault(path.stem, path)
    return found


def lacks_card(path: Path) -> bool:
    """Is it a file of tensors without a card? False for a damaged file: loading it says what is wrong."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return "stpredict" not in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def find_model(name_or_path: str) -> Path:
    """A model file by path, or by the name of an installed model. Raises ModelFileError with the nearest names."""
    installed = list_models()
    if name_or_path in installed:
        return installed[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise ModelFileError(f"{path}: no such model file.")
    near = difflib.get_close_matches(name_or_path, installed, n=3, cutoff=0.3) or list(installed)[:3]
    raise ModelFileError(f"no model is called {name_or_path!r}; nearest: {', '.join(near) or 'none installed'}.")


def _checksum(card: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
