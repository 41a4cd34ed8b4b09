"""Published models by name: how to read each one's files, and what its authors say about it.

Nothing is downloaded, and nothing in the files is executed. `write_published` takes a reader's result.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stpredict.data.panel import read_gene_list
from stpredict.errors import ModelFileError, UsageError
from stpredict.model.origin import Origin
from stpredict.networks.deepspot import deepspot_head
from stpredict.networks.ensemble_head import EnsembleConfig, join_members
from stpredict.networks.gene_query_head import fold_decoder
from stpredict.networks.histoprism import histoprism_head
from stpredict.networks.inert_pickle import read_pickled
from stpredict.networks.published_head import HeadConfig
from stpredict.networks.stpath import stpath_head
from stpredict.networks.tensor_files import read_tensors
from stpredict.storage.text_tables import read_text

#: Path2Space's members, each a state dict; the numbers are its outer and inner fold.
MEMBER = re.compile(r"(?:^|/)result_(\d{1,2})_(\d{1,2})_0/model_trained\.pth$")
OUTER, INNER = 22, 7
#: No member is larger.
MAX_MEMBER_BYTES = 256 << 20
MAX_SETTINGS_BYTES = 1 << 20
#: File with the list of cancers that HistoPrism knows.
CANCERS = "oncotree_code_list.txt"
PATH2SPACE_MPP = 100 / 224


@dataclass(frozen=True)
class KnownFiles:
    """The files of a published model, and further facts that a reader may need."""

    head: Path
    genes: Path | None = None
    organ: str | None = None
    technology: str | None = None
    gene_source: str | None = None


@dataclass(frozen=True)
class ReadModel:
    """A published model from its files: its genes in order, its head, and how many features the head reads."""

    genes: list[str]
    config: HeadConfig
    tensors: Mapping[str, Tensor]
    n_features: int


@dataclass(frozen=True)
class KnownModel:
    """The facts about a published model. Sizes are None if its authors do not state them; then the user must."""

    read: Callable[[KnownFiles], ReadModel]
    origin: Origin
    unit: str
    encoder: str
    mpp: float | None
    tile_um: float | None
    pitch_um: float | None = None
    stain: Literal["macenko"] | None = None
    own_encoder: bool = False  # in the file of the head
    pixels: tuple[str, str] | None = None  # mean and deviation, if not the encoder's usual ones


def read_path2space(files: KnownFiles) -> ReadModel:
    """The members of Path2Space, from the published archive (.tar.gz) or the folder that it unpacks to."""
    genes = read_gene_list(demanded(files.genes, "genes.txt"))
    try:
        tensors = join_members(archived(files.head) if files.head.is_file() else unpacked(files.head), OUTER * INNER)
    except ValueError as error:
        raise ModelFileError(f"{files.head.name}: not Path2Space's members ({error}).") from error
    config = EnsembleConfig(OUTER * INNER, tensors["second_weight"].shape[2])
    return ReadModel(genes, config, tensors, tensors["first.weight"].shape[1])


def archived(path: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each member of an archive with its place. The archive is not unpacked to disk."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                fold = MEMBER.search(member.name)
                content = archive.extractfile(member) if fold and member.isfile() else None
                if fold and content:
                    if member.size > MAX_MEMBER_BYTES:
                        raise ModelFileError(f"{path.name}: {Path(member.name).parent.name} is too large a member.")
                    yield place_of(fold), plain_tensors(content.read(), f"{path.name}: {member.name}")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ModelFileError(f"{path.name}: cannot be read as an archive; it may have been cut short.") from error


def unpacked(folder: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each member in a folder with its place."""
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: no such archive or folder of Path2Space's members.")
    for path in sorted(folder.rglob("model_trained.pth")):
        if fold := MEMBER.search(path.as_posix()):
            yield place_of(fold), read_tensors(path)


def place_of(fold: re.Match[str]) -> int:
    """A member's place among all. Raises ValueError, with a sentence, for folds that Path2Space does not have."""
    outer, inner = int(fold[1]), int(fold[2])
    if outer >= OUTER or inner >= INNER:
        raise ValueError(f"it has a member {fold[0][:60]}")
    return outer * INNER + inner


def plain_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict that torch saved. Raises ModelFileError for anything else."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {str(key): tensor for key, tensor in loaded.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # torch fails in many ways on files of other kinds
        raise ModelFileError(f"{name}: not a file of plain tensors, or a damaged one.") from error


def read_deepspot_m(files: KnownFiles) -> ReadModel:
    """DeepSpot-M: its `model.safetensors`, with `tokens.csv` and `config.json` beside it."""
    tensors = read_tensors(files.head)
    settings = read_settings(files.head.with_name("config.json"))
    heads = settings.get("cross_attn_heads", 8)
    if not isinstance(heads, int) or heads < 1:
        raise ModelFileError(f"{files.head.name}: its config.json asks for cross_attn_heads {heads}.")
    source = files.gene_source or "scgpt"
    try:
        config, folded = fold_decoder(tensors, source, heads)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise not_of(files.head, "DeepSpot-M", error) from error
    genes = read_tokens(files.genes or files.head.with_name("tokens.csv"))
    return ReadModel(genes, config, folded, folded["patch_proj.weight"].shape[1])


def read_stpath(files: KnownFiles) -> ReadModel:
    """STPath: `stfm.pth`, and the symbols' Ensembl ids (`symbol2ensembl.json`), which give its genes in order."""
    path = demanded(files.genes, "symbol2ensembl.json")
    if path.suffix == ".json":
        ids = read_settings(path, limit=1 << 26)
        if not ids or not all(isinstance(one, str) for one in ids.values()):
            raise UsageError(f"{path}: does not give a symbol's Ensembl id.")
        genes = sorted(set(ids.values()))
    else:
        genes = read_gene_list(path)
    try:
        config, tensors = stpath_head(read_tensors(files.head), files.organ, files.technology)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise not_of(files.head, "STPath", error) from error
    return ReadModel(genes, config, tensors, tensors["embed.weight"].shape[1])


def read_deepspot(files: KnownFiles) -> ReadModel:
    """DeepSpot: `final_model.pkl`, of which only the numbers are read, and its table of genes.

    A state dict (.safetensors) with `scaler.mean_` and `scaler.scale_` in it is read too.
    """
    if files.head.suffix == ".safetensors":
        tensors: dict[str, Tensor] = read_tensors(files.head)
        numbers = tensors
    else:
        found = read_pickled(files.head)
        tensors = dict(found.tensors)
        numbers = {name: torch.from_numpy(array) for name, array in found.arrays.items()}
    mean, scale = (
        next((x for name, x in numbers.items() if name.endswith(f"scaler.{part}")), None)
        for part in ("mean_", "scale_")
    )
    if mean is None or scale is None:
        raise ModelFileError(
            f"{files.head.name}: does not tell its genes' mean and deviation (scaler.mean_, scaler.scale_); save its "
            "state dict with these two in it, as docs/models.md shows."
        )
    try:
        config, head = deepspot_head(tensors, mean, scale)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise not_of(files.head, "DeepSpot", error) from error
    genes = read_predicted_genes(demanded(files.genes, "info_highly_variable_genes.csv"))
    return ReadModel(genes, config, head, head["first.weight"].shape[1])


def read_histoprism(files: KnownFiles) -> ReadModel:
    """HistoPrism: `best_model.pt`, its genes (`stpath_genes.yaml`), and the list of cancers beside it.

    The cancer is a code of `oncotree_code_list.txt`, whose order the network uses.
    """
    cancer = None
    if files.organ:
        path = files.head.with_name(CANCERS)
        if not path.is_file():
            raise UsageError(f"--organ {files.organ}: needs {CANCERS} of its training split beside {files.head.name}.")
        codes = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if files.organ not in codes:
            raise UsageError(
                f"--organ {files.organ}: it was not trained on this cancer; choose one of {', '.join(codes)}."
            )
        cancer = codes.index(files.organ)
    genes = demanded(files.genes, "stpath_genes.yaml")
    names = read_yaml_list(genes) if genes.suffix in (".yaml", ".yml") else read_gene_list(genes)
    try:
        config, tensors = histoprism_head(read_tensors(files.head), cancer)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise not_of(files.head, "HistoPrism", error) from error
    return ReadModel(names, config, tensors, tensors["told"].shape[0])


def read_yaml_list(path: Path) -> list[str]:
    """The only list of a YAML file, one entry a line. Raises UsageError if it cannot be read."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a list of genes ({error}).") from error
    return [line[2:].strip().strip("'\"") for line in lines if line.startswith("- ")]


def not_of(path: Path, model: str, reason: Exception) -> ModelFileError:
    said = f"it has no tensor {reason}" if isinstance(reason, KeyError) else " ".join(str(reason).split())[:200]
    return ModelFileError(f"{path.name}: not read as {model} ({said}).")


def demanded(genes: Path | None, usual: str) -> Path:
    """The file of genes. Raises UsageError if it is not given."""
    if genes is None:
        raise UsageError(f"--genes: name the file of its genes, {usual} as published.")
    return genes


def read_settings(path: Path, limit: int = MAX_SETTINGS_BYTES) -> Mapping[str, Any]:
    """A file's settings, empty if there is no file. Raises ModelFileError if it holds no settings."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > limit:
            raise ValueError("it is too large")
        said = json.loads(path.read_text())
        if not isinstance(said, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error}).") from error
    return said


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table that was published as text. Raises UsageError if it cannot be read."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path))))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a table of genes ({error}).") from error


def read_tokens(path: Path) -> list[str]:
    """The genes of DeepSpot-M's `tokens.csv`, without its other tokens; or of a list."""
    rows = rows_of(path)
    if not rows or not {"token", "token_type"} <= set(rows[0]):
        return read_gene_list(path)
    return [row["token"] for row in rows if row["token_type"] == "gene"]


def read_predicted_genes(path: Path) -> list[str]:
    """The genes of DeepSpot's table that are predicted (`isPredicted`), in its order; or of a list."""
    rows = rows_of(path)
    if not rows or not {"gene_name", "isPredicted"} <= set(rows[0]):
        return read_gene_list(path)
    return [row["gene_name"] for row in rows if row["isPredicted"].strip().lower() in ("true", "1", "1.0")]


KNOWN: dict[str, KnownModel] = {
    "path2space": KnownModel(
        read_path2space,
        Origin(
            by="Shulman et al. 2026", source="Zenodo 20174301", licence="Apache-2.0", tissue="breast cancer",
            citation="Cell 2026, 10.1016/j.cell.2026.04.023",
        ),
        "as trained; its authors do not document it", "CTransPath", PATH2SPACE_MPP, 100.0, stain="macenko",
    ),
    "deepspot-m": KnownModel(
        read_deepspot_m,
        Origin(
            by="Nonchev et al. 2026", source="Hugging Face ratschlab/DeepSpotM, gated", licence="CC-BY-NC-SA-4.0",
            tissue="many tissues", citation="medRxiv 2026.06.19.26356060", commercial=False,
        ),
        "log1p-CPM by its description, ln(1 + counts per 10,000) by its code; relative rather than absolute",
        "in its own file", 0.5, 112.0, own_encoder=True, pixels=("0.5,0.5,0.5", "0.5,0.5,0.5"),
    ),
    "stpath": KnownModel(
        read_stpath,
        Origin(
            by="Huang et al. 2025", source="Hugging Face tlhuang/STPath", licence="none stated: all rights reserved",
            tissue="17 organs", citation="npj Digital Medicine 2025, 10.1038/s41746-025-02020-3", commercial=False,
        ),
        "log1p of raw counts", "Prov-GigaPath", 0.5, 112.0, pitch_um=100.0,
    ),
    "deepspot": KnownModel(
        read_deepspot,
        Origin(
            by="Nonchev et al. 2025", source="Zenodo 15322099", licence="MIT (code); the record's own not known",
            citation="medRxiv 2025.02.09.25321567",
        ),
        "ln(1 + counts per 10,000)", "as its top_param_overall.yaml says", None, None, pitch_um=100.0,
    ),
    "histoprism": KnownModel(
        read_histoprism,
        Origin(
            by="Hu et al. 2026", source="GitHub susuhu/HistoPrism, checkpoints_paper", licence="CC-BY-NC-4.0",
            tissue="29 cancers", citation="ICLR 2026", commercial=False,
        ),
        "ln(1 + counts)", "UNI, which is non-commercial", 0.5, 112.0, pitch_um=100.0,
    ),
}  # fmt: skip
