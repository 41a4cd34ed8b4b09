"""Read what torch pickled as a whole, a network with all that hangs on it, and build nothing but tensors and arrays.

A pickle is a program: it names functions, which unpickling calls. Here every name stands for a record that keeps what
it would have been called with. Nothing of torch, numpy or anything else is imported or called on behalf of the file.
From the records tensors and arrays are then made by what their bytes, types and shapes say, each checked against the
bytes that are there; whatever else the file describes stays a record.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stpredict.errors import ModelFileError
from stpredict.networks.tensor_files import refuse_bomb

#: A network's description is small; its tensors are in files of their own.
MAX_PROGRAM_BYTES = 16 << 20
#: How deep objects hang on one another, and how many there are at most.
MAX_DEPTH, MAX_OBJECTS = 200, 1_000_000
STORAGES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"), "BoolStorage": np.dtype("?"),
}  # fmt: skip
#: Types of numbers that numpy's arrays may have, as it names them.
NUMBERS = ("f2", "f4", "f8", "i4", "i8")
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
ARRAY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
DTYPE = "numpy.dtype"
#: How older pickles write bytes: as text, to be encoded.
ENCODED, ENCODING = "_codecs.encode", "latin1"


class Record:
    """What a name in the file was called with. Subclasses differ in the name alone."""

    of: str = ""

    def __new__(cls, *args: Any, **_kwargs: Any) -> Record:
        # Not in __init__, which unpickling does not always call.
        made = object.__new__(cls)
        made.args, made.state, made.items = args, None, {}
        return made

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]

    def __call__(self, *args: Any, **_kwargs: Any) -> Record:
        return Record(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        self.append(value)


class Reader(pickle.Unpickler):
    """Names are records, and so are the storages that lie beside the program."""

    def __init__(self, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self.known: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        full = f"{module}.{name}"
        return self.known.setdefault(full, type("Record", (Record,), {"of": full}))

    def persistent_load(self, pid: Any) -> Record:
        return Stored(*pid) if isinstance(pid, tuple) else Stored(pid)

    def get_extension(self, _code: int) -> Any:
        raise pickle.UnpicklingError("names by number are not read")


class Stored(Record):
    """Numbers in a file beside the program: ("storage", type, key, device, count)."""

    of = "stored"


@dataclass(frozen=True)
class Numbers:
    """What of a file was numbers: tensors and arrays by the names of what they hang on, joined by points."""

    tensors: Mapping[str, Tensor]
    arrays: Mapping[str, np.ndarray[Any, Any]]


def read_pickled(path: Path) -> Numbers:
    """The tensors and arrays of a network that torch saved as a whole, `module` and other holders left out of names.

    Raises ModelFileError for any other file, a damaged one, or one whose numbers are not there.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file.")
    refuse_bomb(path)
    try:
        with zipfile.ZipFile(path) as archive:
            program = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(program).file_size > MAX_PROGRAM_BYTES:
                raise ValueError("its description is too large")
            root = Reader(archive.read(program)).load()
            folder = program.removesuffix("data.pkl")
            found = Finder(lambda key: archive.read(f"{folder}data/{key}"))
            found.look(root)
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:  # unpickling fails in as many ways as there are wrong programs
        said = " ".join(str(error).split())[:100] or type(error).__name__
        raise ModelFileError(f"{path.name}: cannot be read as a network that torch saved ({said}).") from error
    return Numbers(found.tensors, found.arrays)


class Finder:
    """Goes through records and keeps the numbers; each object once, so that those that hold themselves end."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self.read = read
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.seen: set[int] = set()

    def look(self, thing: Any, name: str = "", depth: int = 0) -> None:
        if depth > MAX_DEPTH or len(self.seen) > MAX_OBJECTS:
            raise ValueError("objects hang too deep, or are too many")
        if not isinstance(thing, Record | dict | list | tuple) or id(thing) in self.seen:
            return
        self.seen.add(id(thing))
        if isinstance(thing, Record) and (thing.of == TENSOR or thing.of in PARAMETER):
            self.tensors[name] = self.tensor(thing)
        elif isinstance(thing, Record) and thing.of in ARRAY:
            array = self.array(thing)
            if array is not None:
                self.arrays[name] = array
        else:
            for key, part in parts_of(thing):
                self.look(part, joined(name, key), depth + 1)

    def tensor(self, record: Record) -> Tensor:
        if record.of in PARAMETER:
            record = record.args[0]
            if not isinstance(record, Record) or record.of != TENSOR:
                raise ValueError("a parameter is no tensor")
        stored, offset, shape, stride = record.args[:4]
        kind, key, count = stored.args[1], stored.args[2], stored.args[4]
        named = kind.of.removeprefix("torch.") if isinstance(kind, type) and issubclass(kind, Record) else ""
        dtype = STORAGES.get(named)
        if dtype is None or not isinstance(key, str) or not key.isdigit():
            raise ValueError("a tensor's numbers are of no known type")
        values: np.ndarray[Any, Any] = np.frombuffer(self.read(key), dtype)
        sizes = [offset, count, *shape, *stride]
        if (
            not all(type(size) is int and size >= 0 for size in sizes)
            or len(shape) != len(stride)
            or count != len(values)
        ):
            raise ValueError("a tensor's sizes are none")
        last = (
            offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else -1
        )
        if last >= len(values) or math.prod(shape) > len(values):
            raise ValueError("a tensor has more numbers than there are")
        return torch.from_numpy(values.copy()).as_strided(shape, stride, offset).clone()

    def array(self, record: Record) -> np.ndarray[Any, Any] | None:
        """None for an array of objects, which is not read."""
        _, shape, dtype, fortran, content = record.state
        if isinstance(content, Record) and content.of == ENCODED and content.args[1:] == (ENCODING,):
            content = content.args[0].encode(ENCODING)
        name = dtype.args[0] if isinstance(dtype, Record) and dtype.of == DTYPE and dtype.args else None
        if name not in NUMBERS or not isinstance(content, bytes):
            return None
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array's sizes are none")
        return np.frombuffer(content, np.dtype(f"<{name}")).reshape(shape, order="F" if fortran else "C").copy()


def parts_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """What hangs on an object, by name."""
    if isinstance(thing, Record):
        yield from parts_of(thing.items)
        if isinstance(thing.state, dict | tuple | list):
            yield "", thing.state
        for argument in thing.args:
            yield "", argument
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield key if isinstance(key, str) else str(key) if type(key) is int else "", value
    else:
        for value in thing:
            yield "", value


def joined(name: str, key: str) -> str:
    """A part's name; what torch keeps its parts in has none."""
    if key in ("", "_modules", "_parameters", "_buffers"):
        return name
    return f"{name}.{key}" if name else key
