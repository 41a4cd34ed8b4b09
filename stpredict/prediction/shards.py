"""Finished blocks of spots on disk. An interrupted prediction resumes from them; the result is assembled from them."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import secrets
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from stpredict.arrays import Float, Float32, Int
from stpredict.errors import ResultError
from stpredict.prediction.quality import MEASURES
from stpredict.storage.files import atomic_path

SHARD_SPOTS = 1024
MANIFEST = "manifest.json"
#: Suffix of the empty file that says that a process predicts, or predicted, a shard.
CLAIM = ".claim"
#: Names of the manifest, shards, claims, features of patches for a network's second pass, and temporary files.
OWN = re.compile(rf"{re.escape(MANIFEST)}|[0-9].*\.(npy|claim)|features-.*\.npy|\..*\.tmp.*", re.DOTALL)
#: Allowed names of a run: it becomes part of paths, and anybody may have written the manifest.
RUN = re.compile(r"[0-9a-f]{8}")
#: The content of a shard's columns.
COLUMNS = ["genes", *MEASURES]
#: Characters to show of a setting that differs, and how many of them before the difference.
SHOWN, SHOWN_BEFORE = 40, 12


@dataclass(frozen=True)
class Shards:
    """The folder of one slide's shards: shard k holds the spots order[k * 1024 : (k + 1) * 1024].

    Its columns are the expression of the genes, with `tta` also its spread, then the measures of the patches.
    `digest` identifies these spots in this order: with the same settings, another version may choose other spots.
    `left_out` are levels of the slide that could not be decoded, so that later processes leave out the same ones.
    The `run` is part of file names, so that a process that still works on a discarded prediction does no harm.
    """

    folder: Path
    order: Int
    n_genes: int
    settings: dict[str, Any]
    digest: str
    run: str
    left_out: tuple[int, ...] = ()

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
        return self.folder / f"{shard:06d}-{self.run}.npy"

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

    def claimed(self, backwards: bool = False) -> Iterator[int]:
        """Missing shards that no process has claimed, each claimed just before it is yielded.

        Raises FileNotFoundError once this prediction is finished or discarded.
        """
        for shard in reversed(range(self.count)) if backwards else range(self.count):
            if self.read(shard) is None and self._claim(shard):
                yield shard

    def _claim(self, shard: int) -> bool:
        if not self.under_way():
            raise FileNotFoundError(errno.ENOENT, "finished or discarded meanwhile", str(self.folder))
        try:
            self.path(shard).with_suffix(CLAIM).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def under_way(self) -> bool:
        """Is this prediction under way, that is neither finished nor discarded?"""
        return (_manifest(self.folder) or {}).get("run") == self.run

    def done(self, also: Container[int]) -> int:
        """How many spots are in shards that exist, or that are in `also`."""
        there = {path.name for path in self.folder.glob(f"*-{self.run}.npy")}
        return sum(len(self.spots(i)) for i in range(self.count) if i in also or self.path(i).name in there)

    def measures(self) -> Float32:
        """MEASURES of all spots, in the order of the lattice."""
        measures = np.empty((len(self.order), len(MEASURES)), np.float32)
        for shard in range(self.count):
            measures[self.spots(shard)] = self._stored(shard)[:, self.n_columns :]
        return measures

    def largest_spread(self) -> float:
        """The largest spread over all spots and genes, without NaN."""
        spreads = (self._stored(shard)[:, self.n_genes : self.n_columns] for shard in range(self.count))
        return max(float(np.nanmax(spread, initial=0)) for spread in spreads)

    def rows(self, block_spots: int, spread: bool = False) -> Iterator[Float32]:
        """Spots x genes in the order of the lattice, `block_spots` at a time; shards stay on disk until needed."""
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
        while self.folder.exists():
            for path in own_files(self.folder):
                path.unlink(missing_ok=True)
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if not all(OWN.fullmatch(path.name) for path in self.folder.glob("*")):
                    return
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise  # else another process wrote in between; without the manifest it soon stops


def own_files(folder: Path) -> tuple[Path, ...]:
    """The files that belong to shards, the manifest first."""
    found = (path for path in folder.glob("*") if OWN.fullmatch(path.name))
    return tuple(sorted(found, key=lambda path: (path.name != MANIFEST, path.name)))


def is_shards(folder: Path) -> bool:
    """Does a folder hold shards, or nothing? It is empty if a call was killed before its first shard."""
    try:
        return {"settings", "spots", "engine"} <= set(json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        return set(folder.iterdir()) == set(own_files(folder))
    except (OSError, ValueError, TypeError):
        return False


def open_shards(
    folder: Path, order: Int, centres: Float, n_genes: int, settings: dict[str, Any],
    left_out: tuple[int, ...] = (), overwrite_before: float = 0.0,
) -> Shards:  # fmt: skip
    """Find the shards of a prediction of these spots with these settings, if it was begun. Writes nothing yet.

    Shards from before `overwrite_before` (seconds since 1970) are discarded. Raises ResultError if the folder holds
    shards of another prediction.
    """
    manifest, digest = _manifest(folder, overwrite_before), _digest(order, centres)
    if manifest is None:
        shards = Shards(folder, order, n_genes, settings, digest, secrets.token_hex(4), left_out)
        shards.remove()
        return shards
    run = _run_of(manifest)
    if manifest.get("columns") != COLUMNS or run is None:
        raise ResultError(
            f"{folder.name}: an interrupted prediction of another version of stpredict stands here; that version "
            "finishes it, --overwrite discards it."
        )
    if manifest["settings"] != settings or manifest["spots"] != digest:
        difference = describe_difference(manifest["settings"], settings)
        raise ResultError(
            f"{folder.name}: an interrupted prediction with other settings stands here "
            f"({difference or 'the spots lie elsewhere or in another order'}); --overwrite discards it."
        )
    return Shards(folder, order, n_genes, settings, digest, run, left_out)


def levels_left_out(folder: Path, overwrite_before: float = 0.0) -> list[int]:
    """The levels that an unfinished prediction could not decode."""
    levels = (_manifest(folder, overwrite_before) or {}).get("left_out")
    return [level for level in levels if type(level) is int] if isinstance(levels, list) else []


def join_shards(
    folder: Path, order: Int, centres: Float, n_genes: int, settings: dict[str, Any], left_out: tuple[int, ...] = ()
) -> Shards | None:
    """The shards of another process's prediction of these spots with these settings; None if there is none."""
    manifest = _manifest(folder)
    run = manifest and _run_of(manifest)
    if not manifest or not run:
        return None
    shards = Shards(folder, order, n_genes, settings, _digest(order, centres), run, left_out)
    return shards if manifest == {**_described(shards), "engine": manifest["engine"]} else None


def pinned_engine(shards: Shards) -> tuple[str, str, str | None] | None:
    """Engine, precision and calibration of the first shard, or None."""
    manifest = _manifest(shards.folder)
    if manifest is None:
        return None
    name, precision, calibration = manifest["engine"]
    return name, precision, calibration


def pin_engine(shards: Shards, name: str, precision: str, calibration: str | None) -> None:
    """Make the folder of the shards and record their engine. Removes claims, whose processes are gone."""
    shards.folder.mkdir(parents=True, exist_ok=True)
    for claim in shards.folder.glob(f"*{CLAIM}"):
        claim.unlink(missing_ok=True)
    with atomic_path(shards.folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**_described(shards), "engine": [name, precision, calibration]}))


def _described(shards: Shards) -> dict[str, Any]:
    known = {"left_out": list(shards.left_out)} if shards.left_out else {}
    return {"settings": shards.settings, "spots": shards.digest, "columns": COLUMNS, "run": shards.run, **known}


def _manifest(folder: Path, overwrite_before: float = 0.0) -> dict[str, Any] | None:
    """The content of the manifest; None if there is none, or if it is older than allowed or damaged."""
    try:
        if (folder / MANIFEST).stat().st_mtime < overwrite_before:
            return None
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"settings", "spots", "engine"} <= set(manifest) else None


def _run_of(manifest: dict[str, Any]) -> str | None:
    run = str(manifest.get("run"))
    return run if RUN.fullmatch(run) else None


def _digest(order: Int, centres: Float) -> str:
    return hashlib.sha256(order.tobytes() + np.ascontiguousarray(centres).tobytes()).hexdigest()


def describe_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The difference of two settings, in words: "pitch_um 100 instead of 50, without mask instead of with".

    Nested settings are named if they differ. Of long values, the text around the first difference is shown.
    """
    different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return ", ".join(_difference(key, found.get(key), wanted.get(key)) for key in different)


def _difference(key: str, found: Any, wanted: Any) -> str:
    if found is None or found == []:
        return f"without {key} instead of with"
    if wanted is None or wanted == []:
        return f"with {key} instead of without"
    if isinstance(found, dict) and isinstance(wanted, dict):
        return describe_difference(*({f"{key} {part}": value for part, value in x.items()} for x in (found, wanted)))
    texts = [",".join(map(str, value)) if isinstance(value, list) else str(value) for value in (found, wanted)]
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    start = max(0, alike - SHOWN_BEFORE)
    return f"{key} {_short(texts[0], start)} instead of {_short(texts[1], start)}"


def _short(text: str, start: int) -> str:
    """The text if it is short, else the part at `start`."""
    if len(text) <= SHOWN:
        return text
    end = start + SHOWN - len("...") * 2
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def write_array(path: Path, values: Any) -> None:
    """Write an array with its checksum, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
        file.write(_checksum(values))


def read_array(path: Path, shape: tuple[int, int], dtype: type[np.generic]) -> Any:
    """An array of this shape and type from `write_array`, or None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
            checksum = file.read()
        whole = values.dtype == dtype and values.shape == shape and checksum == _checksum(values)
    except Exception:  # noqa: BLE001 (numpy fails in many ways on a damaged file)
        return None
    return values if whole else None


def _checksum(values: Any) -> bytes:
    return crc32(np.ascontiguousarray(values).tobytes()).to_bytes(4, "little")
