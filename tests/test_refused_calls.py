"""Calls that cannot work: one sentence, an exit code by whose it is to mend, and nothing left behind.

Exit code 2 where it could not have worked for any input, 1 where an input has a reason of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import SLIDE, make_model, write_section
from PIL import Image
from results_to_draw import made_up
from slides_to_try import tiff_pyramid

from stpredict.commands.inputs import Failure, exit_code
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp
from stpredict.storage.files import make_folder, output_folders

TINY_CHECKPOINT = Path(__file__).parent / "data" / "m2ort_released_tiny.pth"
SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, region: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "tiny.safetensors")
    shutil.copy(SLIDE, folder / "s.svs")
    (folder / "text.svs").write_text("hello")
    for name in ("nompp", "nompp2"):
        tiff_pyramid(folder / f"{name}.tif", region[:600, :600], None)
    tiff_pyramid(folder / "background.tif", np.full((600, 600, 3), 242, np.uint8), (0.5, 0.5))
    tiff_pyramid(folder / "coarse.tif", region[:600, :600], (0.8, 0.8))
    for name in ("r", "q"):
        made_up(folder / f"{name}.h5ad", SPOTS, np.random.default_rng(0).normal(5, 1, (len(SPOTS), 2)))
    (folder / "empty").mkdir()
    (folder / "file").touch()
    (folder / "notimage.png").write_text("no")
    (folder / "bad.geojson").write_text("{}")
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    (folder / "genes.txt").write_text("GNAS\nNOPE\n")
    (folder / "outside.csv").write_text("x,y\n99999,9\n")
    (folder / "s.spots.csv").write_text("x,y,note\n999,999,mine\n")
    (folder / "masks.csv").write_text("slide,mask\nbackground.tif,gone.png\ntext.svs,\n")
    Image.new("L", (100, 100), 255).save(folder / "square.png")
    (folder / "her2st").mkdir()
    for seed, name in enumerate(("A1", "A2", "B1")):
        write_section(folder / "her2st", name, region[9 * seed : 1600 + 9 * seed, :1600], seed)
    return folder


@pytest.fixture(autouse=True)
def where_the_inputs_are(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)


PREDICT = ("-m", "tiny.safetensors", "-o", "new/deep", "--pitch", "100", "--genes", "GNAS", "--engine", "eager")
DRAW = ("-o", "new/deep")
TILE = ("-m", "tiny.safetensors", "-o", "new/deep")
TRAIN = ("train", "her2st", "-o", "new/deep/m.safetensors", "--min-depth", "1")
MODEL = ("evaluate", "tiny.safetensors")
IMPORT = ("models", "import", TINY_CHECKPOINT, "--head-dim", "16", "--mpp", "0.5")

REFUSED = [
    (("predict", "gone.svs", *PREDICT), 2, "gone.svs: no such file or folder"),
    (("predict", "https://example.org/s.svs", *PREDICT), 2, "a web address, and nothing is downloaded"),
    (("predict", "s.svs", *PREDICT, "-o", "new.h5ad"), 2, "-o new.h5ad: names a folder"),
    (("predict", "s.svs", *PREDICT, "-o", "file/new"), 2, "-o file/new: file is a file, not a folder"),
    (("s.svs",), 2, "to predict a slide, run `stpredict predict s.svs`"),
    (("genes", ""), 2, "a gene's name is empty"),
    (("predict", "gone.svs", "gone2.svs", *PREDICT), 2, "2 of 2 slides failed"),
    (("predict", "s.svs", *PREDICT, "GNAS"), 2, "GNAS: a gene of tiny, not a slide"),
    (("predict", "nompp.tif", *PREDICT), 2, "give it with --mpp"),
    (("predict", "nompp.tif", "nompp2.tif", *PREDICT), 2, "2 of 2 slides failed"),
    (("predict", "text.svs", *PREDICT), 1, "not a slide"),
    (("predict", "background.tif", *PREDICT), 1, "no tissue found"),
    (("predict", "s.svs", *PREDICT, "--mpp", "0"), 2, "--mpp 0: must be a positive"),
    (("predict", "s.svs", *PREDICT, "--pitch", "nan"), 2, "--pitch nan: must be finite"),
    (("predict", "s.svs", *PREDICT, "--pitch", "0.4"), 2, "larger than a pixel of the slide (0.499 um)"),
    (("predict", "s.svs", *PREDICT[:-4], "--genes", "NOPE", "--anonymous", "new/names.csv"), 2, "NOPE"),
    (("predict", "@masks.csv", *PREDICT, "--spots", "outside.csv"), 2, "a list's masks choose among the spots of a"),
    (("predict", "s.svs", *PREDICT, "--mask", "gone.png"), 2, "--mask gone.png: not an image or GeoJSON"),
    (("predict", "s.svs", *PREDICT, "--mask", "notimage.png"), 2, "--mask notimage.png: not an image or GeoJSON"),
    (("predict", "s.svs", *PREDICT, "--mask", "bad.geojson"), 2, "--mask bad.geojson: not a GeoJSON file of areas"),
    (("predict", "s.svs", *PREDICT, "--mask", "empty"), 2, "--mask empty: not an image or GeoJSON"),
    (("predict", "s.svs", "text.svs", *PREDICT, "--mask", "notimage.png"), 2, "--mask notimage.png"),
    (("predict", "s.svs", *PREDICT, "--mask", "square.png"), 2, "do not have the proportions of s.svs"),
    (("predict", "s.svs", *PREDICT, "--mask", "notimage.png", "--dry-run"), 2, "--mask notimage.png"),
    (("predict", "s.svs", *PREDICT, "--mask-origin", "bounds"), 2, "of --mask begin; give --mask, too"),
    (("predict", "s.svs", *PREDICT, "--spots", "gone.csv"), 2, "gone.csv: cannot be read"),
    (("predict", "s.svs", *PREDICT, "--spots", "bad.csv"), 2, "needs a header line with the columns x and y"),
    (("predict", "s.svs", *PREDICT, "--spots", "outside.csv"), 2, "1 of 1 spot outside the slide"),
    (("predict", "s.svs", *PREDICT, "--engine", "eager", "--precision", "int8"), 2, "for int8 there is openvino"),
    (("predict", "s.svs", *PREDICT, "-o", "n" * 300), 2, "cannot be made (File name too long)"),
    (("render", "gone.h5ad", *DRAW), 2, "gone.h5ad: no such file"),
    (("render", "gone.h5ad", "gone2.h5ad", *DRAW), 2, "2 of 2 results failed"),
    (("render", "s.svs", *DRAW), 1, "not a result"),
    (("render", "r.h5ad", "q.h5ad", "--genes", "GNAS", *DRAW), 2, "2 of 2 results failed"),
    (("render", "r.h5ad", *DRAW, "--slide", "nope"), 2, "--slide nope: no such file"),
    (("render", "r.h5ad", *DRAW, "--slide", "text.svs"), 1, "not a slide"),
    (("render", "r.h5ad", "q.h5ad", *DRAW, "--opacity", "7"), 2, "--opacity 7: must be above 0"),
    (("render", "r.h5ad", "q.h5ad", *DRAW, "--vmin", "3", "--vmax", "2"), 2, "--vmin 3, --vmax 2: span no range"),
    (("render", "r.h5ad", *DRAW, "--vmin", "nan"), 2, "--vmin nan: must be a number"),
    (("render", "r.h5ad", "q.h5ad", *DRAW, "--downsample", "nan"), 2, "--downsample nan: must be at least 1"),
    (("render", "r.h5ad", *DRAW, "--style", "pca"), 1, "at least three genes"),
    (("render", "r.h5ad", *DRAW, "--style", "pca", "--genes", "G0"), 2, "--genes names 1"),
    (("tile", "gone.svs", *TILE), 2, "gone.svs: no such file"),
    (("tile", "s.svs", *TILE, "-o", ".", "--spots", "s.spots.csv"), 2, "would be overwritten"),
    (("tile", "text.svs", *TILE), 1, "not a slide"),
    (("tile", "s.svs", "empty/../s.svs", *TILE), 2, "s.svs and empty/../s.svs would both be written to new/deep/s.*"),
    (("tile", "s.svs", *TILE, "--mpp", "-1"), 2, "--mpp -1: must be a positive"),
    (("tile", "s.svs", "background.tif", *TILE, "--pitch", "nan"), 2, "--pitch nan"),
    (("tile", "empty", *TILE), 2, "not a data set in a known layout"),
    (("tile", "her2st", *TILE, "--pitch", "50"), 2, "--pitch: a data set's spots are where they were measured"),
    (("tile", "her2st", *TILE, "--mpp", "0"), 2, "--mpp 0: must be a positive"),
    (("tile", "her2st", *TILE, "--mpp", "0.1"), 2, "0.5 um per pixel is too coarse for patches of 0.1; take an"),
    (("train", "gone", "-o", "new/deep/m.safetensors"), 2, "gone: no such file or folder"),
    ((*TRAIN, "--arch", "m3ort"), 2, "--arch m3ort"),
    ((*TRAIN, "--hold-out", "A2"), 2, "holding out section A2 trains on the same patient"),
    ((*TRAIN, "--folds", "9"), 2, "--folds 9"),
    ((*TRAIN, "--genes-required", "GNASS"), 2, "nearest: GNAS"),
    ((*TRAIN, "--genes-file", "genes.txt"), 2, "'NOPE'"),
    ((*TRAIN, "--min-depth", "100000"), 2, "--min-depth sets another bound"),
    ((*TRAIN, "--smooth-labels", "--objective", "nb"), 2, "--smooth-labels: not with --objective nb"),
    ((*TRAIN, "--device", "banana"), 2, "--device banana"),
    ((*TRAIN, "--mpp", "-1"), 2, "--mpp -1: must be a positive"),
    ((*TRAIN, "--learning-rate", "nan"), 2, "--learning-rate nan: must be a positive"),
    ((*TRAIN, "--encoder", "s.svs", "--mpp", "0.5"), 2, "s.svs: not an encoder's file"),
    (("train", "her2st", "-o", "empty/m.bin"), 2, "ends in .safetensors"),
    (("evaluate", "r.h5ad", "her2st", *DRAW, "--engine", "eager"), 2, "--engine: a result is predicted already"),
    (("evaluate", "gone.h5ad", "her2st", *DRAW), 2, "gone.h5ad: no such file"),
    ((*MODEL, "gone", *DRAW), 2, "gone: no such file or folder"),
    ((*MODEL, "her2st", *DRAW, "--min-depth", "100000"), 2, "no spot has counts enough"),
    ((*MODEL, "her2st", *DRAW, "--protocol", "x"), 2, "--protocol: evaluate has only hest"),
    (("evaluate", "dictionary-her2st", "her2st", *DRAW), 2, "was trained on patients of these names (A, B)"),
    (("evaluate", "r.h5ad", "her2st", *DRAW), 2, "no section is called r (A1, A2, B1)"),
    (("summary", "gone.h5ad", "gone2.h5ad", "-o", "new/deep/c.csv"), 2, "2 of 2 results failed"),
    (("summary", "s.svs", "-o", "new/deep/c.csv"), 1, "not a result"),
    (("summary", "r.h5ad", "-o", "empty"), 2, "-o empty: is a folder; name a CSV file."),
    (("summary", "r.h5ad", "-o", "empty", "--overwrite"), 2, "-o empty: is a folder; name a CSV file."),
    (("summary", "r.h5ad", "--regions", "bad.geojson", "-o", "new/deep/c.csv"), 2, "not a GeoJSON file of areas"),
    (("summary", "r.h5ad", "--origin", "bounds", "-o", "new/deep/c.csv"), 2, "of --regions begin; give --regions, too"),
    ((*IMPORT, "--genes", "genes.txt", "-o", "new/deep/m.safetensors"), 2, "predicts 7 genes, but 2 are named"),
    ((*IMPORT, "--genes", "genes.txt", "-o", "new/deep/m.bin"), 2, "ends in .safetensors"),
]


@pytest.mark.parametrize(
    ("call", "code", "says"), REFUSED, ids=[" ".join(map(str, call))[-60:] for call, *_ in REFUSED]
)
def test_a_call_that_cannot_work_says_why_and_leaves_nothing(inputs, call, code, says):
    before = sorted(inputs.rglob("*"))
    done = run(*call)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert done.stdout == ""
    assert "unexpected" not in done.stderr
    assert sorted(inputs.rglob("*")) == before


def test_a_slide_that_is_refused_is_told_before_how_well_genes_are_predicted():
    assert run("predict", "text.svs", *PREDICT).stderr.startswith("stpredict: text.svs: not a slide")


@pytest.mark.parametrize("call", [
    (*TRAIN, "--hold-out", "A2"), ("evaluate", "dictionary-her2st", "her2st"), ("evaluate", "r.h5ad", "her2st"),
    ("evaluate", "dictionary-her2st", "her2st", "--protocol", "hest"),
])  # fmt: skip
def test_what_tables_tell_is_known_before_patches_are_cut(call, monkeypatch):
    for module in ("training.preparation", "evaluation.assessment"):
        monkeypatch.setattr(f"stpredict.{module}.write_tiles", None)
    assert run(*call).exit_code == 2


def test_what_was_there_before_a_call_was_refused_stays(tmp_path):
    (tmp_path / "old").mkdir()
    assert run("predict", "gone.svs", *PREDICT, "-o", tmp_path / "old").exit_code == 2
    assert (tmp_path / "old").is_dir()
    earlier = tmp_path / "m.run"
    (earlier / "all").mkdir(parents=True)
    (earlier / "run.json").write_text("{}")
    refused = run(*TRAIN, "-o", tmp_path / "m.safetensors", "--hold-out", "A2", "--overwrite")
    assert refused.exit_code == 2
    assert (earlier / "all").is_dir()
    assert (earlier / "run.json").read_text() == "{}"


def test_one_slide_whose_mask_or_pitch_does_not_do_costs_only_itself(tmp_path):
    listed = run("predict", "@masks.csv", *PREDICT, "-o", tmp_path / "list")
    assert listed.exit_code == 1
    assert "gone.png: cannot be read" in listed.stderr
    assert "not a slide" in listed.stderr
    pitched = run("predict", "coarse.tif", "background.tif", *PREDICT, "--pitch", "0.7", "-o", tmp_path / "pitch")
    assert pitched.exit_code == 1
    assert "larger than a pixel of the slide (0.8 um)" in pitched.stderr
    assert "background.tif: no tissue found" in pitched.stderr


def test_a_checkpoint_is_imported_into_a_new_folder(tmp_path):
    (tmp_path / "genes.txt").write_text("\n".join("ABCDEFG"))
    done = run(*IMPORT, "--genes", tmp_path / "genes.txt", "-o", tmp_path / "new" / "m.safetensors")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "m.safetensors").exists()


def test_folders_that_hold_nothing_in_the_end_are_taken_back(tmp_path):
    with output_folders(tmp_path / "a" / "b", tmp_path / "c"):
        (tmp_path / "c" / "file").touch()
        assert (tmp_path / "a" / "b").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with output_folders(tmp_path / "c"):
        (tmp_path / "c" / "file").unlink()
    assert (tmp_path / "c").is_dir()  # it was there before
    assert make_folder(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]


def test_a_call_is_the_callers_to_mend_if_all_its_inputs_are():
    mend, own = Failure(Path("a"), "no such file.", True), Failure(Path("b"), "damaged.")
    assert exit_code([], 2) == 0
    assert exit_code([mend], 2) == exit_code([mend, own], 2) == exit_code([own], 1) == 1
    assert exit_code([mend, mend], 2) == 2
