from __future__ import annotations

import json
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from conftest import GENES, SLIDE, make_model
from predicting import predict
from slides_to_try import leica_with_bounds, tiff_pyramid

from stpredict.engines.eager import load_network
from stpredict.errors import ResultError, UsageError
from stpredict.model.file import load_model
from stpredict.prediction.request import warn_of_unpredicted_genes
from stpredict.prediction.shards import Shards
from stpredict.result.file import read_provenance, read_result
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, OpenSlideSlide, open_slide


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    (outcome,) = predict(tiny_model, out, genes=("DDX5", "GNAS"))
    assert outcome.status == "done"
    return outcome.job.result


def test_expression_is_what_the_network_says_of_each_spots_patch(tiny_model, result):
    found = read_result(result)
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        some = np.arange(0, len(found.spots), 7)
        patches = np.zeros((len(some), 224, 224, 3), np.uint8)
        for index, block in read_patches(raster, found.spots.centres[some], 224):
            patches[index] = block
    with torch.inference_mode():
        expected = load_network(tiny_model)(torch.from_numpy(patches)).numpy()
    for gene in ("GNAS", "DDX5"):
        np.testing.assert_allclose(found.expression(gene)[some], expected[:, GENES.index(gene)], atol=1e-4)


def test_a_network_of_several_views_gets_them_all_and_its_spots_are_judged_by_the_narrowest(
    tiny_m2ost_path, result, tmp_path
):
    model = load_model(tiny_m2ost_path)
    (outcome,) = predict(model, tmp_path)
    found = read_result(outcome.job.result)
    some = np.arange(0, len(found.spots), 9)
    stacks = np.zeros((len(some), 3, 224, 224, 3), np.uint8)
    with open_slide(SLIDE) as slide:
        raster = make_raster(slide, Mpp(0.499, 0.499), 0.69)
        for index, block in read_patches(raster, found.spots.centres[some], 224, views=(1, 2, 4)):
            stacks[index] = block
    with torch.inference_mode():
        expected = load_network(model)(torch.from_numpy(stacks)).numpy()
    np.testing.assert_allclose(found.expression("GNAS")[some], expected[:, GENES.index("GNAS")], atol=1e-4)
    told = [anndata.read_h5ad(path).obs for path in (outcome.job.result, result)]
    for flag in ("blurred", "pen", "fold", "pale"):
        assert (told[0][flag] == told[1][flag]).mean() > 0.99


def test_anndata_opens_the_result(result):
    table = anndata.read_h5ad(result)
    assert list(table.var_names) == ["DDX5", "GNAS"]  # in the order asked for
    assert table.X.dtype == np.float32
    assert table.obs_names[0].startswith("CMU-1-Small-Region:r")
    assert table.obs_names.is_unique
    assert (table.obs["tissue_fraction"] >= 0.25).all()
    np.testing.assert_allclose(table.var["held_out_correlation"], [0.01, 0.3], atol=1e-6)
    np.testing.assert_allclose(
        table.obsm["spatial"], (table.obs[["col", "row"]].to_numpy() + 0.5) * 100 / 0.499, atol=1e-6
    )
    library = table.uns["spatial"]["CMU-1-Small-Region"]
    assert library["images"]["hires"].shape[2] == 3
    height = library["images"]["hires"].shape[0]
    assert height / library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(2967, rel=0.01)
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100 / 0.499)
    json.loads(table.uns["stpredict_timings"])


def test_provenance_says_how_it_was_made(result, tiny_model):
    found = read_provenance(result)
    assert found["model"] == {"name": "tiny", "sha256": tiny_model.sha256}
    assert (found["engine"], found["precision"]) == ("eager", "fp32")
    assert found["check"]["passed"]
    assert found["slide"]["native_mpp"] == found["slide"]["mpp"] == [0.499, 0.499]
    assert found["slide"]["given_mpp"] is None
    assert (result.parent / found["slide"]["path"]).resolve() == SLIDE.resolve()
    assert found["lattice"] == {"layout": "square", "pitch_um": 100.0, "spot_diameter_um": 100.0, "oversampled": False}


def test_nothing_of_the_slides_own_metadata_is_copied(result):
    with open_slide(SLIDE) as slide:
        secrets = [v for k, v in slide._slide.properties.items() if k.startswith("aperio.") and len(v) > 5]  # type: ignore[attr-defined]
    assert len(secrets) > 3
    content = result.read_bytes()
    assert not [secret for secret in secrets if secret.encode() in content]


@pytest.fixture(scope="module")
def judged_model(tmp_path_factory):
    """A model whose card says which genes are reliable: the first and the fourth."""
    n = len(GENES)
    low, ridge = [0.1, -0.1, 0.1, 0.15, *[None] * (n - 4)], [0.1, 0.0, 0.25, 0.1, *[None] * (n - 4)]
    said = {"how": "95 % made up", "low": low, "high": [0.4] * 4 + [None] * (n - 4), "ridge": ridge}
    return load_model(make_model(tmp_path_factory.mktemp("judged") / "judged.safetensors", reliability=said))


def test_what_the_card_says_of_each_gene_reaches_the_result_and_the_user(judged_model, tmp_path):
    lines: list[str] = []
    (outcome,) = predict(judged_model, tmp_path, genes=("CD74", "DDX5"), pitch_um=200.0, report=lines.append)
    var = anndata.read_h5ad(outcome.job.result).var
    np.testing.assert_allclose(var["held_out_low"], [0.15, -0.1])
    np.testing.assert_allclose(var["held_out_ridge"], [0.1, 0.0])
    assert read_result(outcome.job.result).genes[1].held_out_low == pytest.approx(-0.1)
    assert "does not predict 1 of these 2 genes reliably" in lines[0]
    assert "95 % made up" in lines[0]
    assert lines[1] == "held-out correlation of each gene (95 % made up), and that of ridge regression:"
    assert lines[2] == "  CD74    0.20 (0.15 to 0.40), ridge 0.10"
    assert lines[3] == "  DDX5    0.01 (-0.10 to 0.40), ridge 0.00  not reliable"


def test_of_many_genes_only_the_range_is_told(judged_model, monkeypatch):
    monkeypatch.setattr("stpredict.prediction.request.MAX_LISTED", 2)
    lines: list[str] = []
    warn_of_unpredicted_genes(judged_model, ["GNAS", "DDX5", "CD74"], lines.append)
    assert lines[1:] == ["held-out correlation of these 3 genes: 0.01 to 0.30, median 0.20; the result holds each one"]


def test_a_result_that_does_not_know_reliability_is_read(result):
    with h5py.File(result) as file:
        assert np.isnan(file["var/held_out_low"][()]).all()
    older = result.with_name("older.h5ad")
    older.write_bytes(result.read_bytes())
    with h5py.File(older, "r+") as file:
        del file["var/held_out_low"], file["var/held_out_ridge"]
    assert np.isnan(read_result(older).genes[0].held_out_low)


def test_genes_default_to_the_whole_panel(tiny_model, tmp_path):
    (outcome,) = predict(tiny_model, tmp_path, pitch_um=200.0)
    assert [gene.name for gene in read_result(outcome.job.result).genes] == GENES


def test_a_denser_grid_is_recorded_as_oversampling(tiny_model, tmp_path):
    (outcome,) = predict(tiny_model, tmp_path, genes=("GNAS",), pitch_um=60.0, layout="hex")
    found = read_provenance(outcome.job.result)
    assert found["lattice"]["oversampled"]
    assert read_result(outcome.job.result).spots.layout == "hex"


def test_spots_of_a_file_agree_with_the_lattice(tiny_model, tmp_path, result):
    found = read_result(result)
    order = np.random.default_rng(0).permutation(len(found.spots))
    lines = [f"{x!r},{y!r}" for x, y in found.spots.centres[order].tolist()]
    (tmp_path / "spots.csv").write_text("x,y\n" + "\n".join(lines))
    (outcome,) = predict(tiny_model, tmp_path, genes=("GNAS",), spots_file=tmp_path / "spots.csv")
    np.testing.assert_allclose(
        read_result(outcome.job.result).expression("GNAS"), found.expression("GNAS")[order], atol=1e-5
    )


def test_slides_with_bounds_begin_at_their_origin(tiny_model, tmp_path, region):
    leica_with_bounds(tmp_path / "b.scn", region[500:1700, :1400], corner=(300, 200), size=(2500, 2000))
    (outcome,) = predict(tiny_model, tmp_path, slides=[tmp_path / "b.scn"], genes=("GNAS",))
    spots = read_result(outcome.job.result).spots
    np.testing.assert_allclose((spots.centres - (300, 200)) / 200, np.column_stack([spots.column, spots.row]) + 0.5)


def test_up_to_date_results_stay_and_others_are_refused(tiny_model, tmp_path):
    (first,) = predict(tiny_model, tmp_path, genes=("GNAS",))
    content = first.job.result.read_bytes()
    (again,) = predict(tiny_model, tmp_path, genes=("GNAS",))
    assert again.status == "up to date"
    (other,) = predict(tiny_model, tmp_path, genes=("GNAS",), pitch_um=150.0)
    assert other.status == "failed"
    assert isinstance(other.error, ResultError)
    assert "pitch_um 100.0 instead of 150.0" in str(other.error)
    assert "--overwrite" in str(other.error)
    assert first.job.result.read_bytes() == content
    (replaced,) = predict(tiny_model, tmp_path, genes=("GNAS",), pitch_um=150.0, overwrite_before=time.time())
    assert replaced.status == "done"
    assert read_provenance(first.job.result)["lattice"]["pitch_um"] == 150.0


def test_no_thread_reads_a_slide_that_is_closed(tiny_model, tmp_path, monkeypatch):
    reading, closed_while_reading = [0], []
    read, close = OpenSlideSlide._read_inside, OpenSlideSlide.close

    def slowly(self, *region):
        reading[0] += 1
        time.sleep(0.05)
        pixels = read(self, *region)
        reading[0] -= 1
        return pixels

    def watch(self):
        closed_while_reading.append(reading[0])
        close(self)

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stpredict.slides.raster.BLOCK_LEVEL_PX", 256)
    monkeypatch.setattr("stpredict.prediction.shards.SHARD_SPOTS", 32)
    monkeypatch.setattr(OpenSlideSlide, "_read_inside", slowly)
    monkeypatch.setattr(OpenSlideSlide, "close", watch)
    monkeypatch.setattr(Shards, "write", fail)
    (outcome,) = predict(tiny_model, tmp_path, pitch_um=30.0)
    assert "No space left" in str(outcome.error)
    assert closed_while_reading == [0]


def test_one_bad_slide_costs_only_itself(tiny_model, tmp_path, region):
    tiff_pyramid(tmp_path / "no_mpp.tif", region[:1024, :1024], None)
    (tmp_path / "text.svs").write_text("hello")
    slides = [tmp_path / "missing.svs", tmp_path / "no_mpp.tif", SLIDE, tmp_path / "text.svs"]
    outcomes = predict(tiny_model, tmp_path / "out", slides, genes=("GNAS",))
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "done", "failed"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["CMU-1-Small-Region.h5ad"]


def test_given_mpp_is_recorded_beside_the_native_one(tiny_model, tmp_path):
    (outcome,) = predict(tiny_model, tmp_path, genes=("GNAS",), mpp=0.6)
    slide = read_provenance(outcome.job.result)["slide"]
    assert (slide["native_mpp"], slide["given_mpp"], slide["mpp"]) == ([0.499, 0.499], 0.6, [0.6, 0.6])


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"genes": ("GNASS",)}, "nearest: GNAS"),
        ({"genes": ("GNAS", "GNAS")}, "more than once"),
        ({"min_tissue": 1.5}, "between 0 and 1"),
        ({"spots_file": Path("nowhere.csv")}, "cannot be read"),
    ],
)
def test_what_cannot_work_for_any_slide_is_refused_at_once(tiny_model, tmp_path, request_, says):
    with pytest.raises(UsageError, match=says):
        predict(tiny_model, tmp_path, **request_)


def test_two_slides_of_one_name_are_refused(tiny_model, tmp_path):
    with pytest.raises(UsageError, match="would both be written"):
        predict(tiny_model, tmp_path, [Path("a/slide.svs"), Path("b/slide.svs")])


def test_poor_genes_are_named(tiny_model, tmp_path):
    lines: list[str] = []
    predict(tiny_model, tmp_path, genes=("GNAS", "DDX5"), report=lines.append)
    assert any("DDX5 (0.01)" in line and "GNAS" not in line for line in lines)
