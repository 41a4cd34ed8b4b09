from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stpredict.data.dataset import read_dataset
from stpredict.errors import DatasetError

CENTRES = np.array([(x, y) for y in range(300, 2700, 400) for x in range(300, 2000, 400)], dtype=float)
COUNTS = np.random.default_rng(0).poisson(3, (len(CENTRES), 2)).astype("float32")


@pytest.fixture
def hest(tmp_path: Path, region: np.ndarray) -> Path:
    """Two samples of two studies, both of the study's first patient, with all that HEST-1k says of them."""
    for folder in ("st", "wsis", "metadata", "patches"):
        (tmp_path / folder).mkdir()
    lines = ["dataset_title,id,patient,st_technology,inter_spot_dist,spot_diameter"]
    for name, study in (("NCBI700", "A study"), ("SPA12", "Another study")):
        obs = pd.DataFrame(index=[f"{i:03}x001" for i in range(len(CENTRES))])
        data = anndata.AnnData(COUNTS, obs, pd.DataFrame(index=["GNAS", "DDX5"]), obsm={"spatial": CENTRES})
        data.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": np.zeros((4, 4, 3), "uint8")}}}
        data.write_h5ad(tmp_path / "st" / f"{name}.h5ad")
        Image.fromarray(region).save(tmp_path / "wsis" / f"{name}.tif", dpi=(96, 96))
        facts = {
            "pixel_size_um_estimated": 0.5,
            "pixel_size_um_embedded": 0.2646,
            "spot_diameter": 100.0,
            "patient": "",
        }
        (tmp_path / "metadata" / f"{name}.json").write_text(json.dumps(facts))
        lines.append(f"{study},{name},Patient 1,Spatial Transcriptomics,200,100")
    (tmp_path / "HEST_v1_1_0.csv").write_text("\n".join([*lines, "Third,TENX1,,Xenium,,"]) + "\n")
    (tmp_path / "patches" / "NCBI700.h5").write_bytes(b"not read")
    return tmp_path


def test_sections_and_what_is_known_of_them(hest: Path):
    sections = read_dataset(hest)
    assert [(s.name, s.patient) for s in sections] == [
        ("NCBI700", "Patient 1 (A study)"),
        ("SPA12", "Patient 1 (Another study)"),
    ]
    for section in sections:
        assert section.mpp == (0.5, 0.5)
        assert (section.spot_diameter_um, section.pitch_um) == (100, 200)
        assert section.image == hest / "wsis" / f"{section.name}.tif"
        np.testing.assert_array_equal(section.counts.toarray(), COUNTS)
        (note,) = section.notes
        assert note.endswith("by the metadata's pixel_size_um_estimated, but 0.2646 x 0.2646 by the metadata's "
                             "pixel_size_um_embedded")  # fmt: skip


def test_a_patient_is_called_the_same_without_the_other_study(hest: Path):
    (hest / "st" / "SPA12.h5ad").unlink()
    (section,) = read_dataset(hest)
    assert section.patient == "Patient 1 (A study)"


def test_a_patient_who_is_not_a_number_is_none(hest: Path):
    (hest / "metadata" / "SPA12.json").write_text('{"pixel_size_um_estimated": 0.5, "patient": NaN}')
    assert [section.patient for section in read_dataset(hest)][1] == "Patient 1 (Another study)"


def test_patients_must_be_known(hest: Path):
    (hest / "HEST_v1_1_0.csv").unlink()
    with pytest.raises(DatasetError, match=r"which patient NCBI700 comes from; write .*section,patient .*, SPA12"):
        read_dataset(hest)
    (hest / "sections.csv").write_text("section,patient,mpp\nSPA12,someone,0.45\n")
    (section,) = read_dataset(hest)
    assert (section.name, section.patient, section.mpp) == ("SPA12", "someone", (0.45, 0.45))


def test_missing_and_damaged_files_are_named(hest: Path):
    (hest / "metadata" / "SPA12.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"SPA12.json: cannot be read as JSON"):
        read_dataset(hest)
    (hest / "metadata" / "SPA12.json").unlink()
    (hest / "wsis" / "SPA12.tif").unlink()
    with pytest.raises(DatasetError, match="section SPA12 has no image"):
        read_dataset(hest)
