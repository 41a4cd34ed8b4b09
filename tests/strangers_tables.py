"""What strangers send with counts: originals of the files that `train` and lists of slides read, and their reading."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from conftest import DATA
from encoders_to_try import Tiny, export
from PIL import Image
from safetensors.torch import load_file
from scipy.sparse import csc_array, csr_array

from stpredict.batch.jobs import find_jobs
from stpredict.data.counts import in_memory
from stpredict.data.cutting import write_tiles
from stpredict.data.h5ad import read_h5ad
from stpredict.data.matrices import read_10x
from stpredict.data.panel import read_gene_list
from stpredict.data.patch_formats import stored_patches
from stpredict.data.patches_elsewhere import patches_folder
from stpredict.data.rows import read_rows
from stpredict.data.section import Section
from stpredict.data.space_ranger import read_positions, read_scale
from stpredict.data.spotted import read_counts, read_selection
from stpredict.data.tiles import read_tiles
from stpredict.networks.encoder_files import open_encoder
from stpredict.networks.timm_vit import ViTReading
from stpredict.slides.mask import MaskRequest, inside_mask
from stpredict.slides.slide import Bounds, Mpp

N_SPOTS, N_GENES = 40, 12
SIDE_PX = 600
GENES = [f"GENE{i}" for i in range(N_GENES)]
VIT = ViTReading(heads=2, pooling="token", activation="gelu", epsilon=1e-6, told_by="config.json")
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]


def make_tables(folder: Path, image: Path) -> dict[str, Path]:
    """One whole file of each kind; `image` is that of the section."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (N_SPOTS, N_GENES))
    array = [(x, y) for x in range(8) for y in range(N_SPOTS // 8)]
    centres = np.array(array) * 60 + 50.0
    names = [f"{x}x{y}" for x, y in array]
    table = pd.DataFrame(counts, index=names, columns=GENES).to_csv(sep="\t")
    (folder / "counts.tsv").write_text(table)
    (folder / "counts.tsv.gz").write_bytes(gzip.compress(table.encode(), mtime=0))
    pixels = [(*at, *at, *centre, 1) for at, centre in zip(array, centres.tolist(), strict=True)]
    columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    pd.DataFrame(pixels, columns=columns).to_csv(folder / "S1_selection.tsv", sep="\t", index=False)
    _write_10x(folder / "filtered_feature_bc_matrix.h5", counts)
    var = pd.DataFrame({"gene_ids": IDS}, index=GENES)
    obs = pd.DataFrame(dict(zip(("array_row", "array_col"), np.array(array).T, strict=True)), index=names)
    annotated = anndata.AnnData(csr_array(counts), obs, var, obsm={"spatial": centres})
    annotated.write_h5ad(folder / "counts.h5ad")
    positions = [(f"SPOT{i}-1", 1, *at, *centres[i]) for i, at in enumerate(array)]
    pd.DataFrame(positions).to_csv(folder / "tissue_positions.csv", index=False, header=False)
    (folder / "scalefactors_json.json").write_text(
        json.dumps({"spot_diameter_fullres": 89.4, "tissue_hires_scalef": 0.1})
    )
    section = Section("S1", "P1", image, Mpp(0.5, 0.5), names, centres, GENES, in_memory(counts))
    write_tiles([section], folder / "S1.tiles.h5", patch_px=16, unlabelled=8, report=lambda _: None)
    shutil.copy(next(patches_folder(folder / "S1.tiles.h5").iterdir()), folder / "S1-patches.h5")
    (folder / "list.csv").write_text(
        "slide,mpp,mask,out\n" + "".join(f"s{i}.svs,0.5,m{i}.geojson,o\n" for i in range(9))
    )
    (folder / "sections.csv").write_text("section,patient,mpp\n" + "".join(f"S{i},P{i},0.5\n" for i in range(9)))
    np.save(folder / "genes.npy", np.array(GENES))
    Image.fromarray((rng.random((150, 150)) < 0.5).astype(np.uint8) * 255).save(folder / "mask.png")
    export(folder / "encoder.pt2", Tiny())
    torch.jit.script(Tiny().eval()).save(str(folder / "encoder.pt"))
    shutil.copy(DATA / "timm_vit_plain" / "model.safetensors", folder / "encoder.safetensors")
    torch.save(load_file(folder / "encoder.safetensors"), folder / "encoder.bin")
    return {kind: folder / name for kind, (name, _) in TABLES.items()}


def _write_10x(path: Path, counts: np.ndarray) -> None:
    matrix = csc_array(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(matrix, part), compression="gzip")
        group["barcodes"] = np.array([f"SPOT{i}-1" for i in range(N_SPOTS)], "S18")
        group["features/id"], group["features/name"] = np.array(IDS, "S15"), np.array(GENES, "S10")
        group["features/feature_type"] = np.array([b"Gene Expression"] * N_GENES)


def _digest(*parts: object) -> str:
    texts = (part.toarray().tobytes() if isinstance(part, csr_array) else repr(part).encode() for part in parts)
    return hashlib.sha256(b"\n".join(texts)).hexdigest()


def use_h5ad(path: Path) -> str:
    found = read_h5ad(path)
    return _digest(found.names, found.centres.tolist(), found.genes, found.counts)


def use_tiles(path: Path) -> str:
    tiles = read_tiles(path)
    patches = tiles.read_patches(range(len(tiles.spot)))
    labels = (tiles.spot.tolist(), tiles.section.tolist(), tiles.patient.tolist(), tiles.centres.tolist())
    places = tiles.read_patches(range(len(tiles.unlabelled_section)), unlabelled=True)
    return _digest(*labels, tiles.genes, tiles.counts.rows(), patches.tobytes(), places.tobytes())


def use_patches(path: Path) -> str:
    return _digest(stored_patches(path, "img", (16, 16, 3)).read(range(N_SPOTS)).tobytes())


def use_mask(path: Path) -> str:
    slide = SimpleNamespace(dimensions=(SIDE_PX, SIDE_PX), bounds=Bounds(0, 0, SIDE_PX, SIDE_PX), path=Path("s.svs"))
    centres = np.mgrid[0:SIDE_PX:8, 0:SIDE_PX:8].reshape(2, -1).T.astype(float)
    return _digest(inside_mask(MaskRequest(path), slide, centres).tobytes())


def use_encoder(path: Path) -> str:
    encoder = open_encoder(path, vit=VIT)
    return _digest([parameter.tolist() for parameter in encoder.parameters()])


#: By kind the file's name and how it is read.
TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "counts TSV": ("counts.tsv", lambda path: _digest(*read_counts(path))),
    "counts TSV.gz": ("counts.tsv.gz", lambda path: _digest(*read_counts(path))),
    "spots TSV": ("S1_selection.tsv", lambda path: _digest(read_selection(path).to_csv())),
    "Space Ranger matrix": ("filtered_feature_bc_matrix.h5", lambda path: _digest(*read_10x(path))),
    "Space Ranger spots": ("tissue_positions.csv", lambda path: _digest(read_positions(path).to_csv())),
    "Space Ranger scale": ("scalefactors_json.json", lambda path: _digest(read_scale(path))),
    "AnnData counts": ("counts.h5ad", use_h5ad),
    "tiles": ("S1.tiles.h5", use_tiles),
    "patches of a section": ("S1-patches.h5", use_patches),
    "list of slides": ("list.csv", lambda path: _digest(find_jobs([f"@{path}"], Path("out"), lambda _: None))),
    "list of sections": ("sections.csv", lambda path: _digest(read_rows(path.parent))),
    "list of genes": ("genes.npy", lambda path: _digest(read_gene_list(path))),
    "mask image": ("mask.png", use_mask),
    "encoder, exported": ("encoder.pt2", use_encoder),
    "encoder, TorchScript": ("encoder.pt", use_encoder),
    "encoder, timm": ("encoder.safetensors", use_encoder),
    "encoder, timm of torch": ("encoder.bin", use_encoder),
}
