from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from hest_to_read import CENTRES, COUNTS, leave_patches_alone, write_hest

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.reading import Reading
from stpredict.errors import DatasetError, UsageError


@pytest.fixture
def hest(tmp_path: Path, region: np.ndarray) -> Path:
    return write_hest(tmp_path, region)


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
        np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)
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


def test_a_sample_without_a_patient_makes_its_study_one_patient(hest: Path, tmp_path: Path):
    shutil.copy(hest / "st" / "SPA12.h5ad", hest / "st" / "SPA13.h5ad")
    shutil.copy(hest / "wsis" / "SPA12.tif", hest / "wsis" / "SPA13.tif")
    with (hest / "HEST_v1_1_0.csv").open("a") as table:
        table.write("Another study,SPA13,,Spatial Transcriptomics,200,100\n")
    shutil.copy(hest / "metadata" / "SPA12.json", hest / "metadata" / "SPA13.json")
    sections = read_dataset(hest)
    assert [s.patient for s in sections] == ["Patient 1 (A study)", "Another study", "Another study"]
    lines: list[str] = []
    write_tiles(sections, tmp_path / "t.h5", mpp=1.0, report=lines.append)
    said = [line for line in lines if "names no patient" in line]
    assert said == ["SPA12, SPA13: a sample of its study names no patient, so the whole study counts as one patient"]


def test_squares_that_hest_pools_are_known_and_samples_chosen(hest: Path):
    table = hest / "HEST_v1_1_0.csv"
    text = table.read_text().replace("SPA12,Patient 1,Spatial Transcriptomics", "SPA12,Patient 1,Visium HD")
    table.write_text(text)
    facts = {"pixel_size_um_estimated": 0.32, "spot_diameter": 2.0, "species": "Homo sapiens"}
    (hest / "metadata" / "SPA12.json").write_text(json.dumps(facts))
    (section,) = read_dataset(hest, Reading(where="st_technology='Visium HD'"))
    assert (section.name, section.technology, section.species) == ("SPA12", "Visium HD", "human")
    assert (section.spot_diameter_um, section.pitch_um) == (128, 128)
    with pytest.raises(UsageError, match="no column organ; it has dataset_title, "):
        read_dataset(hest, Reading(where="organ=Breast"))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_every_command_chooses_sections_by_the_same_conditions(hest: Path, tiny_model_path: Path):
    for call in (
        ("tile", hest, "-m", tiny_model_path),
        ("train", hest, "-o", "m.safetensors"),
        ("compare", hest, "--arch", "dictionary", "-o", "compared"),
        ("evaluate", tiny_model_path, hest),
    ):
        done = run(*call, "--where", "organ=Breast")
        assert done.exit_code == 2, (call, done.output)
        assert "--where 'organ=Breast': the data set has no column organ; it has dataset_title," in done.stderr
        assert run(*call, "--species", "rat").exit_code == 2


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_panel_of_one_gene_is_refused_before_patches_are_cut(hest: Path):
    for name, genes in (("NCBI700", [f"G{i}" for i in range(120)]), ("SPA12", ["G7", *(f"X{i}" for i in range(49))])):
        counts = np.random.default_rng(0).poisson(3, (len(CENTRES), len(genes))).astype("float32")
        obs = pd.DataFrame(index=[f"{i:03}x001" for i in range(len(CENTRES))])
        data = anndata.AnnData(counts, obs, pd.DataFrame(index=genes), obsm={"spatial": CENTRES})
        data.write_h5ad(hest / "st" / f"{name}.h5ad")
    call = ("train", hest, "--arch", "dictionary", "--min-depth", "1", "-o", "m.safetensors")
    done = run(*call, "--panel", "variance")
    assert done.exit_code == 2
    told = "all sections measured 1 gene, though one section measured 120, and fewest were measured in SPA12 (50);"
    assert told in done.stderr
    assert not Path("m.run").exists()


def test_broken_sections_are_named_in_one_call_and_left_out_where_asked(hest: Path):
    shutil.copy(hest / "st" / "SPA12.h5ad", hest / "st" / "NCBI1.h5ad")
    (hest / "st" / "NCBI1.h5ad").write_bytes((hest / "st" / "SPA12.h5ad").read_bytes()[:3000])
    shutil.copy(hest / "wsis" / "SPA12.tif", hest / "wsis" / "NCBI1.tif")
    with (hest / "HEST_v1_1_0.csv").open("a") as table:
        table.write("A study,NCBI1,Patient 1,Spatial Transcriptomics,200,100\n")
    (hest / "wsis" / "SPA12.tif").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2 sections cannot be read: NCBI1 \(.*; SPA12 \(.*\); --skip-broken"):
        read_dataset(hest)
    assert [section.name for section in read_dataset(hest, Reading(skip_broken=True))] == ["NCBI700"]


def test_missing_and_damaged_files_are_named(hest: Path):
    (hest / "metadata" / "SPA12.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"SPA12.json: cannot be read as JSON"):
        read_dataset(hest)
    (hest / "metadata" / "SPA12.json").unlink()
    (hest / "wsis" / "SPA12.tif").unlink()
    with pytest.raises(DatasetError, match="section SPA12 has no image"):
        read_dataset(hest)


def test_names_of_patches_are_any_kind_of_text_unless_their_heap_is_damaged(hest: Path, region: np.ndarray):
    leave_patches_alone(hest, region)
    path = hest / "patches" / "SPA12.h5"
    expected = [section.spot_names for section in read_dataset(hest)]
    with h5py.File(path, "r+") as file:
        names = file["barcode"].asstr()[:].astype(object)
        del file["barcode"]
        file["barcode"] = names.astype(h5py.string_dtype())
    assert [section.spot_names for section in read_dataset(hest)] == expected
    content = bytearray(path.read_bytes())
    heap = content.rindex(b"GCOL", 0, content.index(str(names.ravel()[0]).encode(), content.index(b"GCOL")))
    content[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"SPA12\.h5: .*heap of text is damaged.*; download it again"):
        read_dataset(hest)
