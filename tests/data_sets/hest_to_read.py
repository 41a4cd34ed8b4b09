"""Two samples in the layout of HEST-1k, cut from the example slide."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image

CENTRES = np.array([(x, y) for y in range(300, 2700, 400) for x in range(300, 2000, 400)], dtype=float)
COUNTS = np.random.default_rng(0).poisson(3, (len(CENTRES), 2)).astype("float32")


def write_hest(folder: Path, region: np.ndarray) -> Path:
    """Two samples of two studies, both of the study's first patient, with all that HEST-1k says of them."""
    for name in ("st", "wsis", "metadata", "patches"):
        (folder / name).mkdir()
    lines = ["dataset_title,id,patient,st_technology,inter_spot_dist,spot_diameter"]
    for name, study in (("NCBI700", "A study"), ("SPA12", "Another study")):
        obs = pd.DataFrame(index=[f"{i:03}x001" for i in range(len(CENTRES))])
        data = anndata.AnnData(COUNTS, obs, pd.DataFrame(index=["GNAS", "DDX5"]), obsm={"spatial": CENTRES})
        data.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": np.zeros((4, 4, 3), "uint8")}}}
        data.write_h5ad(folder / "st" / f"{name}.h5ad")
        Image.fromarray(region).save(folder / "wsis" / f"{name}.tif", dpi=(96, 96))
        facts = {
            "pixel_size_um_estimated": 0.5,
            "pixel_size_um_embedded": 0.2646,
            "spot_diameter": 100.0,
            "patient": "",
        }
        (folder / "metadata" / f"{name}.json").write_text(json.dumps(facts))
        lines.append(f"{study},{name},Patient 1,Spatial Transcriptomics,200,100")
    (folder / "HEST_v1_1_0.csv").write_text("\n".join([*lines, "Third,TENX1,,Xenium,,"]) + "\n")
    (folder / "patches" / "NCBI700.h5").write_bytes(b"not read")
    return folder


def leave_patches_alone(hest: Path, region: np.ndarray) -> Path:
    """The same data as most people have them: patches in an order of their own, of all spots but the last."""
    for path in (hest / "wsis").iterdir():
        path.unlink()
    (hest / "wsis").rmdir()
    order = np.random.default_rng(0).permutation(len(CENTRES) - 1)
    for name in ("NCBI700", "SPA12"):
        with h5py.File(hest / "patches" / f"{name}.h5", "w") as file:
            patches = [cut(region, *CENTRES[i]) for i in order] + [np.zeros((224, 224, 3), np.uint8)]
            file.create_dataset("img", data=np.array(patches), chunks=(1, 224, 224, 3))
            file["barcode"] = np.array([[f"{i:03}x001".encode()] for i in [*order, 999]])
            file["coords"] = np.array([CENTRES[i] - 112 for i in [*order, 0]], dtype=int)
            file["img"].attrs["patch_size"] = 224
    return hest


def cut(region: np.ndarray, x: float, y: float) -> np.ndarray:
    return region[int(y) - 112 : int(y) + 112, int(x) - 112 : int(x) + 112]
