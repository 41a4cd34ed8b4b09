"""Finished blocks of spots on disk, from which an interrupted prediction resumes and the result is assembled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from stpredict.arrays import Float, Float32, Int
from stpredict.errors import ResultError
from stpredict.files import atomic_path
from stpredict.prediction.quality import MEASURES

SHARD_SPOTS = 1024
MANIFEST = "manifest.json"
#: Features of patches that a network reads in a second pass over the slide.
FEATURES = "features-*.npy"
#: What the columns of a shard hold.
COLUMNS = ["genes", *MEASURES]


@dataclass(frozen=True)
class Shards:
    """The folder of one slide's shards: shard k holds the spots order[k * 1024 : (k + 1) * 1024].

    Each has the expression of the genes, with `tta` then its spread, then the measures of the patches, in columns.
    `digest` tells these spots in this order from others that the same settings may give, as another version would.
    """

    folder: Path
    order: Int
    n_genes: int
    settings: dict[str, Any]
    digest: str

    @property
    def tta(self) -> bool:
        return "tta" in self.settings

    @property
    def n_columns(self) -> int:
        """Columns before the measures."""
        return self.n_genes * (2 if self.tta else 1)

    @property
    def count(self) -> int:
        return -(-len(self.order) // SHARD_SPOTS)

    def spots(self, shard: int) -> Int:
        """The spots of a shard, as indices into the lattice."""
        return self.order[shard * SHARD_SPOTS : (shard + 1) * SHARD_SPOTS]

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npy"

    def write(self, shard: int, values: Float32) -> None:
        """Write spots x columns of one shard, whole or not at all."""
        write_array(self.path(shard), values)

    def read(self, shard: int) -> Float32 | None:
        """A shard, or None if it is missing or damaged."""
        shape = (len(self.spots(shard)), self.n_columns + len(MEASURES))
        values: Float32 | None = read_array(self.path(shard), shape, np.float32)
        return values

    def missing(self) -> list[int]:
        return [shard for shard in range(self.count) if self.read(shard) is None]

    def measures(self) -> Float32:
        """MEASURES of all spots, in the order of the lattice."""
        measures = np.empty((len(self.order), len(MEASURES)), np.float32)
        for shard in range(self.count):
            measures[self.spots(shard)] = self._stored(shard)[:, self.n_columns :]
        return measures

    def largest_spread(self) -> float:
        """Over all spots and genes, of those that are known."""
        spreads = (self._stored(shard)[:, self.n_genes : self.n_columns] for shard in range(self.count))
        return max(float(np.nanmax(spread, initial=0)) for spread in spreads)

    def rows(self, block_spots: int, spread: bool = False) -> Iterator[Float32]:
        """Spots x genes in the order of the lattice, `block_spots` at a time; shards stay on disk in between."""
        first = self.n_genes if spread else 0
        place = np.empty(len(self.order), np.int64)
        place[self.order] = np.arange(len(self.order))
        for start in range(0, len(place), block_spots):
            wanted = place[start : start + block_spots]
            block = np.empty((len(wanted), self.n_genes), np.float32)
            for shard in np.unique(wanted // SHARD_SPOTS):
                here = wanted // SHARD_SPOTS == shard
                block[here] = self._stored(int(shard))[wanted[here] % SHARD_SPOTS, first : first + self.n_genes]
            yield block

    def _stored(self, shard: int) -> Float32:
        values: Float32 = np.load(self.path(shard), mmap_mode="r", allow_pickle=False)
        return values

    def remove(self) -> None:
        """Remove the shards and, if it holds nothing else, their folder."""
        for path in own_files(self.folder):
            path.unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def own_files(folder: Path) -> tuple[Path, ...]:
    """The files that belong to shards."""
    parts = (found for pattern in ("[0-9]*.npy", FEATURES, ".*.tmp*") for found in sorted(folder.glob(pattern)))
    return (*folder.glob(MANIFEST), *parts)


def is_shards(folder: Path) -> bool:
    """Does a folder hold shards, or nothing, as where a call was killed before its first one?"""
    try:
        return {"settings", "spots", "engine"} <= set(json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        return set(folder.iterdir()) == set(own_files(folder))
    except (OSError, ValueError, TypeError):
        return False


def open_shards(
    folder: Path, order: Int, centres: Float, n_genes: int, settings: dict[str, Any], overwrite: bool
) -> Shards:
    """Find the shards of a prediction of these spots with these settings, if it was begun; nothing is written yet.

    Raises ResultError if the folder holds shards of others, unless `overwrite`, which discards them.
    """
    digest = hashlib.sha256(order.tobytes() + np.ascontiguousarray(centres).tobytes()).hexdigest()
    shards = Shards(folder, order, n_genes, settings, digest)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, same_spots = manifest["settings"], manifest["spots"] == digest
        same_columns = manifest.get("columns") == COLUMNS
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        found, same_spots, same_columns = None, False, False
    if overwrite or found is None:
        shards.remove()
    elif not same_columns:
        raise ResultError(
            f"{folder.name}: an interrupted prediction of another version of stpredict stands here; that version "
            "finishes it, --overwrite discards it."
        )
    elif found != settings or not same_spots:
        difference = describe_difference(found, settings) or "the spots lie elsewhere or in another order"
        raise ResultError(
            f"{folder.name}: an interrupted prediction with other settings stands here ({difference}); "
            "--overwrite discards it."
        )
    return shards


def pinned_engine(shards: Shards) -> tuple[str, str, str | None] | None:
    """Engine, precision and calibration that the first shard was made with."""
    manifest = shards.folder / MANIFEST
    if not manifest.exists():
        return None
    name, precision, calibration = json.loads(manifest.read_text())["engine"]
    return name, precision, calibration


def pin_engine(shards: Shards, name: str, precision: str, calibration: str | None) -> None:
    """Make the folder of the shards and note what they are made with."""
    shards.folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(shards.folder / MANIFEST) as temporary:
        engine = [name, precision, calibration]
        manifest = {"settings": shards.settings, "spots": shards.digest, "columns": COLUMNS, "engine": engine}
        temporary.write_text(json.dumps(manifest))


def describe_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two settings, in words: "pitch_um 100 instead of 50, without mask instead of with"."""
    different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return ", ".join(_difference(key, found.get(key), wanted.get(key)) for key in different)


def _difference(key: str, found: Any, wanted: Any) -> str:
    if found is None:
        return f"without {key} instead of with"
    if wanted is None:
        return f"with {key} instead of without"
    return f"{key} {_short(found)} instead of {_short(wanted)}"


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def write_array(path: Path, values: Any) -> None:
    """Write an array with its checksum, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
        file.write(_checksum(values))


def read_array(path: Path, shape: tuple[int, int], dtype: type[np.generic]) -> Any:
    """An array of this shape and type as `write_array` wrote it, or None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
            checksum = file.read()
        whole = values.dtype == dtype and values.shape == shape and checksum == _checksum(values)
    except Exception:  # noqa: BLE001 (numpy stumbles over a damaged file in many ways)
        return None
    return values if whole else None


def _checksum(values: Any) -> bytes:
    return crc32(np.ascontiguousarray(values).tobytes()).to_bytes(4, "little")
