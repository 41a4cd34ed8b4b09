"""Names for the array types that travel between modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_] | npt.NDArray[np.object_]
Float = npt.NDArray[np.float64]
Real = npt.NDArray[np.floating[Any]]  # float64, or float32 where values are many
