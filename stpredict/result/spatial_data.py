"""Write a result as a store of the library SpatialData: spots as circles, their expression, the thumbnail."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stpredict.errors import UsageError
from stpredict.result.file import Result

#: Files in the root of a Zarr store, in version 3 or 2.
MARKS = ("zarr.json", ".zgroup")
SPOTS, TABLE, THUMBNAIL = "spots", "expression", "thumbnail"


def demand_spatialdata() -> None:
    """Raises UsageError if the library is not installed."""
    try:
        import spatialdata  # noqa: F401 (slow to import)
    except ImportError as error:
        missing = error.name or "spatialdata"
        raise UsageError(f"this needs {missing}: install stpredict with its extra [spatialdata].") from error


def write_spatialdata(folder: Path, result: Result, genes: Sequence[int]) -> None:
    """Write some genes of a result, by index, into a new store; all in level-0 pixels of the slide.

    Raises UsageError if the library is not installed.
    """
    demand_spatialdata()
    import anndata  # type: ignore[import-untyped]
    import pandas
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    table = anndata.read_h5ad(result.path)[:, list(genes)].copy()
    del table.uns["spatial"]  # the store has the picture
    table.obs["region"] = pandas.Categorical([SPOTS] * table.n_obs)
    table.obs["spot"] = np.arange(table.n_obs)
    diameter = result.canvas.spot_diameter_um / float(np.mean(result.canvas.mpp))
    circles = ShapesModel.parse(
        result.spots.centres, geometry=0, radius=diameter / 2, transformations={"global": Identity()}
    )
    height, width = result.thumbnail.shape[:2]
    factors = [result.canvas.dimensions[0] / width, result.canvas.dimensions[1] / height]
    picture = Image2DModel.parse(
        result.thumbnail.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=("r", "g", "b"),
        transformations={"global": Scale(factors, axes=("x", "y"))},
    )  # fmt: skip
    store = SpatialData(
        images={THUMBNAIL: picture},
        shapes={SPOTS: circles},
        tables={TABLE: TableModel.parse(table, region=SPOTS, region_key="region", instance_key="spot")},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # of anndata's next release; nothing to mend
        store.write(folder)
