from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from conftest import SLIDE, make_model
from encoders_to_try import Tiny, export
from hest_to_read import CENTRES, COUNTS, cut, leave_patches_alone, write_hest
from PIL import Image
from results_to_draw import predict

from stpredict.data import section_log
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.errors import DatasetError
from stpredict.model.file import Model, load_model
from stpredict.networks import ARCHITECTURES
from stpredict.training import dictionary, plan


@pytest.fixture
def hest(tmp_path: Path, region: np.ndarray) -> Path:
    return write_hest(tmp_path, region)


@pytest.fixture
def without_slides(hest: Path, region: np.ndarray) -> Path:
    return leave_patches_alone(hest, region)


def test_many_sections_are_told_of_in_a_table(without_slides: Path, tmp_path: Path):
    first = read_dataset(without_slides)[0]
    sections = [replace(first, name=f"S{i:02}", patient=f"p{i % 3}") for i in range(13)]
    sections[4] = replace(sections[4], notes=(*first.notes, "it is the fifth"))
    lines: list[str] = []
    write_tiles(sections, tmp_path / "t.tiles.h5", report=lines.append)
    table = tmp_path / "t.tiles.csv"
    told = "13 sections of 3 patients, 377 spots, 26 more without counts, position or patch"
    assert lines[0] == f"{told}; {table} says more of each"
    assert lines[-2:] == [
        "S00, S01, S02, S03, S04 and 8 more: its slide is not there, only patches of 224 px at 0.5 um/px",
        "1 notes on one section each stand in t.tiles.csv",
    ]
    assert len(lines) < 6
    rows = pd.read_csv(table)
    assert rows["section"].tolist() == [section.name for section in sections]
    assert rows["notes"][4].endswith("it is the fifth")


def test_how_far_the_cutting_of_many_is_told_now_and_then(without_slides: Path, monkeypatch: pytest.MonkeyPatch):
    first = read_dataset(without_slides)[0]
    sections = [replace(first, name=f"S{i:02}") for i in range(13)]
    lines: list[str] = []
    tell = section_log.section_log(sections, lines.append)
    tell(sections[0])
    assert not lines
    monkeypatch.setattr(section_log, "LINE_EVERY_S", 0.0)
    for section in sections[1:]:
        tell(section)
    assert lines[0].startswith("cut 2 of 13 sections, 58 of 377 spots, about 0:00:0")
    assert len(lines) == 11  # when all are cut, the table's line says so


def test_patches_are_used_where_the_slides_are_not_there(without_slides: Path, region: np.ndarray, tmp_path: Path):
    sections = read_dataset(without_slides)
    for section in sections:
        assert section.spot_names == [f"{i:03}x001" for i in range(len(CENTRES) - 1)]
        assert section.lost_spots == 2  # the last spot, and the patch of a spot that is none
        assert section.mpp == (0.5, 0.5)  # of the slide, in whose pixels the spots lie
        assert section.notes[-1] == "its slide is not there, only patches of 224 px at 0.5 um/px"
    lines: list[str] = []
    write_tiles(sections, tmp_path / "t.h5", unlabelled=10, report=lines.append)
    assert lines[0] == "no unlabelled patches of NCBI700, SPA12, as the slides are not there"
    assert lines[1] == "NCBI700: 29 spots, 2 without counts, position or patch, mpp 0.5000 x 0.5000"
    tiles = read_tiles(tmp_path / "t.h5")
    assert (tiles.mpp, tiles.patch_px, len(tiles.unlabelled_section)) == (0.5, 224, 0)
    np.testing.assert_array_equal(tiles.counts.rows().toarray(), np.tile(COUNTS[:-1, ::-1], (2, 1)))  # genes are sorted
    for i, centre in enumerate([*CENTRES[:-1]] * 2):
        np.testing.assert_array_equal(tiles.read_patch(i), cut(region, *centre))


def test_patches_stay_where_they_are_and_may_move_with_the_tiles(without_slides: Path, tmp_path: Path):
    lines: list[str] = []
    for name in ("first", "second"):
        (without_slides / name).mkdir()
        write_tiles(read_dataset(without_slides), without_slides / name / "t.tiles.h5", report=lines.append)
    assert lines[2] == "patches of 2 of 2 sections stay in the data set's own files, not copied"
    moved = shutil.copytree(without_slides, tmp_path / "moved")
    shutil.rmtree(without_slides / "patches")
    path, n_spots = moved / "first" / "t.tiles.h5", 2 * (len(CENTRES) - 1)
    assert path.stat().st_size < n_spots * 1024
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 4
        assert not any(str(tmp_path) in str(file[f"elsewhere/{name}"][()]) for name in file["elsewhere"])
    first, second = read_tiles(path), read_tiles(moved / "second" / "t.tiles.h5")
    order = np.random.default_rng(0).permutation(n_spots)
    np.testing.assert_array_equal(first.read_patches(order), second.read_patches(order))
    for outside in (-1, n_spots):
        with pytest.raises(IndexError):
            first.read_patches([outside])


def test_a_missing_or_changed_file_of_patches_is_refused_in_a_sentence(without_slides: Path, tmp_path: Path):
    tiles, patches = tmp_path / "t.tiles.h5", without_slides / "patches" / "SPA12.h5"
    write_tiles(read_dataset(without_slides), tiles, report=lambda _: None)
    way_out = "; put that back, or cut the tiles again from the folder of the data set."
    whole = patches.read_bytes()
    with h5py.File(patches, "r+") as file:
        file["img"][:] = file["img"][:][::-1]
    opened = read_tiles(tiles)  # of equal size, so that only reading tells
    opened.read_patches(range(29))  # of the other section
    with pytest.raises(DatasetError) as refused:
        opened.read_patches([40])
    assert str(refused.value) == f"t.tiles.h5: {patches} is not the file it was cut with{way_out}"
    patches.write_bytes(whole + b"more")
    with pytest.raises(DatasetError) as refused:
        read_tiles(tiles)
    assert str(refused.value) == f"t.tiles.h5: {patches} is not the file it was cut with{way_out}"
    patches.unlink()
    done = run("train", tiles, "--arch", "dictionary", "-o", tmp_path / "m.safetensors")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"t.tiles.h5: its patches are in {patches}, which is not there{way_out}" in done.stderr
    assert not (tmp_path / "m.run").exists()


def test_tiles_that_name_their_files_wrongly_are_damaged(without_slides: Path, tmp_path: Path):
    tiles = tmp_path / "t.tiles.h5"
    write_tiles(read_dataset(without_slides), tiles, report=lambda _: None)
    with h5py.File(tiles, "r+") as file:
        file["elsewhere/file"][3] = 2
    with pytest.raises(DatasetError, match="does not say which file has which patch"):
        read_tiles(tiles)


def test_patches_from_a_slide_where_it_is_there_stand_beside_others(without_slides: Path, region: np.ndarray, tmp_path):
    (without_slides / "wsis").mkdir()
    Image.fromarray(region).save(without_slides / "wsis" / "SPA12.tif")
    stored, cut_anew = read_dataset(without_slides)
    assert stored.patches
    assert not cut_anew.patches
    assert len(cut_anew.spot_names) == len(CENTRES)
    lines: list[str] = []
    write_tiles([stored, cut_anew], tmp_path / "t.h5", unlabelled=10, report=lines.append)
    assert lines[0].startswith("no unlabelled patches of NCBI700,")
    others = "; those of the others are cut from their slides"
    assert f"patches of 1 of 2 sections stay in the data set's own files, not copied{others}" in lines
    tiles = read_tiles(tmp_path / "t.h5")
    assert tiles.unlabelled_section.tolist() == ["SPA12"] * 10
    for i in range(len(CENTRES) - 1):
        np.testing.assert_array_equal(tiles.read_patch(i), tiles.read_patch(len(CENTRES) - 1 + i))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_what_needs_the_slide_says_so(without_slides: Path, tmp_path: Path, tiny_m2ost_path: Path):
    coarse = make_model(tmp_path / "coarse.safetensors", mpp=0.69)
    for call, what in (
        (("tile", without_slides, "-m", coarse, "--mpp", "0.69"), "those of 224 px at 0.69 um/px need the slide"),
        (("evaluate", coarse, without_slides), "those of 224 px at 0.69 um/px need the slide"),
        (("tile", without_slides, "-m", tiny_m2ost_path), "looks at 1 and 2 and 4 times the field needs the slide"),
        (("train", without_slides, "--arch", "m2ort-small", "--mpp", "0.25", "-o", "m.safetensors"), "need the slide"),
        (("train", without_slides, "--arch", "triplex", "-o", "m.safetensors"), "--arch triplex needs the slide"),
    ):
        done = run(*call)
        assert done.exit_code == 2, (call, done.output)
        (line,) = [line for line in done.stderr.splitlines() if "NCBI700.h5" in line]
        assert what in line
        assert line.endswith("of section NCBI700; put the slide into wsis/, or name it in the column image of "
                             "sections.csv.")  # fmt: skip
        assert not Path("m.run").exists()


def test_a_stated_pixel_size_comes_before_the_usual_one(without_slides: Path, tmp_path: Path):
    for path in (without_slides / "patches").iterdir():
        with h5py.File(path, "r+") as file:
            file["img"].attrs["pixel_size"] = 1.0
    write_tiles(read_dataset(without_slides), tmp_path / "t.h5", report=print)
    assert read_tiles(tmp_path / "t.h5").mpp == 1


def link_elsewhere(file: h5py.File) -> None:
    del file["img"]
    file["img"] = h5py.ExternalLink("other.h5", "/img")


def wrong_type(file: h5py.File) -> None:
    images = file["img"][:].astype(np.float32)
    del file["img"]
    file["img"] = images


def wrong_shape(file: h5py.File) -> None:
    images = file["img"][:, :100]
    del file["img"]
    file["img"] = images


def twice_the_same(file: h5py.File) -> None:
    file["barcode"][0] = file["barcode"][1]


def too_few_names(file: h5py.File) -> None:
    names = file["barcode"][1:]
    del file["barcode"]
    file["barcode"] = names


def nobody_known(file: h5py.File) -> None:
    file["barcode"][:] = [[f"X{i:03}".encode()] for i in range(len(file["barcode"]))]


def no_such_size(file: h5py.File) -> None:
    file["img"].attrs["pixel_size"] = np.nan


def size_in_words(file: h5py.File) -> None:
    file["img"].attrs["pixel_size"] = "half a micrometre"


def no_patches(file: h5py.File) -> None:
    del file["img"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (link_elsewhere, "img is a link to another file"),
        (wrong_type, "img must be bytes, patches x P x P x 3"),
        (wrong_shape, "img must be bytes, patches x P x P x 3"),
        (twice_the_same, "more than once"),
        (too_few_names, "barcode must name each of its 30 patches"),
        (nobody_known, "no spot in common"),
        (no_such_size, "its pixel_size is nan um"),
        (size_in_words, "its pixel_size is no number"),
        (no_patches, "it needs the data sets img and barcode"),
    ],
)
def test_patches_that_are_none_are_named_with_a_way_out(without_slides: Path, damage, what: str):
    with h5py.File(without_slides / "patches" / "SPA12.h5", "r+") as file:
        damage(file)
    with pytest.raises(DatasetError) as refused:
        read_dataset(without_slides)
    assert "SPA12.h5" in str(refused.value)
    assert what in str(refused.value)
    assert "; download it again, or put the slide into wsis/, or" in str(refused.value)


def test_a_file_of_patches_that_was_cut_short_is_named(without_slides: Path):
    path = without_slides / "patches" / "SPA12.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"SPA12.h5: cannot be read, or is damaged .*; download it again"):
        read_dataset(without_slides)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_model_is_trained_and_evaluated_on_patches_alone(without_slides: Path, monkeypatch):
    monkeypatch.setattr(dictionary, "N_WINDOWS", 6000)
    for path in (without_slides / "patches").iterdir():
        with h5py.File(path, "r+") as file:
            for name in ("img", "barcode"):
                few = file[name][:12]
                del file[name]
                file[name] = few
    fast = ("--min-depth", "1", "--threads", "1")
    shutil.copy(without_slides / "st" / "SPA12.h5ad", without_slides / "st" / "SPA13.h5ad")
    (without_slides / "patches" / "SPA13.h5").write_bytes(b"cut short")
    with (without_slides / "HEST_v1_1_0.csv").open("a") as table:
        table.write("Another study,SPA13,Patient 9,Spatial Transcriptomics,200,100\n")
    shutil.copy(without_slides / "metadata" / "SPA12.json", without_slides / "metadata" / "SPA13.json")
    done = run("train", without_slides, "--arch", "dictionary", "--skip-broken", *fast, "-o", "m.safetensors")
    assert done.exit_code == 1, done.output
    assert "1 section could not be read and is left out: SPA13; m.run/broken.csv says why" in done.stderr
    assert pd.read_csv("m.run/broken.csv")["section"].tolist() == ["SPA13"]
    (without_slides / "st" / "SPA13.h5ad").unlink()
    assert "NCBI700: 12 spots, 18 without counts, position or patch" in done.stderr
    assert "NCBI700, SPA12: its slide is not there" in done.stderr
    card = load_model(Path("m.safetensors")).card
    assert (card["mpp"], card["training"]["unlabelled_patches"], card["training"]["spots"]) == (0.5, 0, 24)
    done = run("evaluate", "m.safetensors", without_slides, *fast, "--engine", "eager", "--allow-patient-leak")
    assert done.exit_code == 0, done.output
    assert "LEAK" in done.stdout
    (page,) = Path().glob("m-*.html")
    assert page.stat().st_size > 10_000


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_network_that_nothing_taught_is_trained_on_patches_alone(without_slides: Path, monkeypatch):
    tiny = {"channels": 12, "depth": 1, "heads": 1, "head_dim": 12, "mixing": "per_level"}
    monkeypatch.setitem(ARCHITECTURES, "m2ort-tiny", tiny)
    monkeypatch.setattr(plan, "MEASURE_S", 0.05)
    call = "--arch m2ort-tiny --epochs 1 --batch-size 16 --threads 1 --min-depth 1 --teach-patches 20 -o m.safetensors"
    planned = run("train", without_slides, *call.split(), "--dry-run")
    stay = "58 spots and 0 unlabelled places, 58 of which stay in the data set's own files: 0 MB of disk"
    assert f"patches of 224 px, of {stay}" in planned.stdout
    done = run("train", without_slides, *call.split())
    assert done.exit_code == 0, done.output
    assert load_model(Path("m.safetensors")).card["mpp"] == 0.5
    assert Path("m.run/dataset.tiles.h5").stat().st_size < 58 * 1024


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_an_encoder_reads_patches_alone(without_slides: Path, tmp_path: Path):
    encoder = export(tmp_path / "tiny.pt2", Tiny(), px=224)
    call = ("--encoder", encoder, "--encoder-licence", "MIT", "--mpp", "0.5", "--min-depth", "1", "--threads", "1")
    done = run("train", without_slides, *call, "-o", "m.safetensors")
    assert done.exit_code == 0, done.output
    assert load_model(Path("m.safetensors")).card["training"]["spots"] == 2 * (len(CENTRES) - 1)


def test_a_result_of_another_name_is_not_scored_where_no_slide_can_tell_which_it_is(
    without_slides: Path, tmp_path: Path, tiny_model: Model
):
    (without_slides / "st" / "SPA12.h5ad").unlink()
    result = predict(tiny_model, tmp_path, SLIDE, pitch_um=200.0)
    refused = run("evaluate", result.path, without_slides)
    assert refused.exit_code == 2
    assert "NCBI700.h5: holds patches alone, and a result of another name (" in refused.stderr
