"""Damaged and hostile files: one sentence, soon, and nothing invented. `benchmarks/reliability.py` tries thousands."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from calls import run
from conftest import make_model
from damage import Child, child, try_kind
from PIL import Image
from results_to_draw import draw, made_up
from slides_to_try import tiff_pyramid
from strangers_files import MUTATIONS, USES, make_originals, mutate, use_result, use_slide

from stpredict.errors import DatasetError, ModelFileError, ResultError, SlideError, StpredictError, UsageError
from stpredict.model.file import load_model
from stpredict.result.file import read_result
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp, open_slide

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 40.0)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_originals(tmp_path_factory.mktemp("originals"))


def damaged(originals, folder: Path, kind: str, mutation: str, seed: int) -> Path:
    donor = originals["PNG" if kind == "JPEG" else "JPEG"].read_bytes()
    path = folder / originals[kind].name
    path.write_bytes(mutate(originals[kind].read_bytes(), donor, mutation, seed))
    return path


@pytest.mark.parametrize(
    ("kind", "mutation", "seed"),
    [
        # Each of these was once filled with grey.
        ("TIFF, JPEG tiles", "bytes flipped", 33), ("TIFF, JPEG tiles", "header spliced", 7),
        ("PNG", "header spliced", 3), ("PNG", "header spliced", 16),
    ],
)  # fmt: skip
def test_damage_that_was_once_missed_is_refused(originals, tmp_path, kind, mutation, seed):
    with pytest.raises(StpredictError) as error:
        USES[kind](damaged(originals, tmp_path, kind, mutation, seed))
    assert originals[kind].name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"X"), (8, bytes(8)), (8, struct.pack("<Q", 1 << 15)), (8, b"\xff" * 8), (16, bytes(64)),
        (24, b"\xf0" + b"\xff" * 7),
    ],
)  # fmt: skip
def test_a_damaged_heap_of_text_is_refused(tmp_path, at, value):
    """The library would follow most of these for ever."""
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 3))).path
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL") + at
    content[heap : heap + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ResultError, match="heap"):
        use_result(path)


CHUNKED = {"chunks": True}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}


@pytest.mark.parametrize("stored", CHUNKED)
@pytest.mark.parametrize("count", [1, 300])
def test_text_in_chunks_is_read_unless_its_heap_is_damaged(tmp_path, count, stored):
    """A free space of no length, which the library would look for an end of for ever."""
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), count))).path
    names = [f"{'a gene of a long name':>40}{i}" for i in range(count)]
    with h5py.File(path, "r+") as file:
        del file["var/_index"]
        file.create_dataset("var/_index", data=np.array(names, object), dtype=h5py.string_dtype(), **stored)
    assert [gene.name for gene in read_result(path).genes] == names
    content = bytearray(path.read_bytes())
    heap = content.rindex(b"GCOL", 0, content.index(names[0].encode()))
    content[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(ResultError, match="heap"):
        read_result(path)


def compact_text(file, name):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple((64,)), h5py.h5t.py_create(h5py.string_dtype(), logical=True)
    h5py.h5d.create(file.id, name.encode(), kind, space, plan)
    file[name][:] = "G0"


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("var/_index", compact_text),
        ("var/_index", lambda file, name: file.create_dataset(name, (64,), h5py.string_dtype(), compression="lzf")),
        ("obs/row", lambda file, name: file.create_dataset(name, (len(SPOTS),), h5py.string_dtype())),
    ],
)
def test_text_whose_heap_cannot_be_checked_is_refused(tmp_path, place, make):
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 64))).path
    with h5py.File(path, "r+") as file:
        del file[place]
        make(file, place)
        if file[place].compression:
            file[place][:] = "G0"
    with pytest.raises(ResultError, match=r"h5py's|another method than gzip|no numbers"):
        read_result(path)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_result_that_anndata_wrote_again_is_read(tmp_path, compression):
    anndata = pytest.importorskip("anndata")
    first = made_up(tmp_path / "s.h5ad", SPOTS, np.random.default_rng(0).normal(5, 1, (len(SPOTS), 3)))
    anndata.read_h5ad(first.path).write_h5ad(tmp_path / "again.h5ad", compression=compression)
    again = read_result(tmp_path / "again.h5ad")
    assert [gene.name for gene in again.genes] == [gene.name for gene in first.genes]
    assert again.provenance == first.provenance
    np.testing.assert_array_equal(again.expression("G1"), first.expression("G1"))


@pytest.fixture(scope="module")
def reader() -> Iterator[Child]:
    with child() as one:
        yield one


@pytest.mark.parametrize("kind", USES)
def test_damaged_files_are_read_or_refused(originals, tmp_path, reader, kind):
    found, defects = try_kind(reader, kind, originals, dict.fromkeys(MUTATIONS, 2), tmp_path, lambda _: None)
    assert not defects
    assert sum(found[mutation].total() for mutation in MUTATIONS) == 2 * len(MUTATIONS)


@pytest.mark.parametrize("kind", ["AnnData counts", "tiles"])
def test_counts_whose_heap_of_text_is_zeroed_are_refused(originals, tmp_path, kind):
    """The library would follow it for ever."""
    content = bytearray(originals[kind].read_bytes())
    heap = content.index(b"GCOL\x01\0\0\0")
    content[heap + 16 : heap + 64] = bytes(48)
    path = tmp_path / originals[kind].name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="heap"):
        USES[kind](path)


def test_a_damaged_list_of_genes_is_one_sentence(originals, tmp_path):
    for seed in (0, 11):  # numpy's SystemError and TokenError
        with pytest.raises(UsageError, match="cannot be read as a list of genes"):
            USES["list of genes"](damaged(originals, tmp_path, "list of genes", "bytes flipped", seed))


def test_a_shard_that_says_it_is_of_other_numbers_is_made_again(originals, tmp_path):
    path = tmp_path / originals["shard"].name
    for number in (b"'>f4'", b"'<i4'"):
        path.write_bytes(originals["shard"].read_bytes().replace(b"'<f4'", number))
        with pytest.raises(ResultError, match="made again"):
            USES["shard"](path)


def test_tables_that_unpack_to_more_than_a_table_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stpredict.data.tables.MAX_TABLE_BYTES", 8 << 20)
    path = tmp_path / "counts.tsv.gz"
    path.write_bytes(gzip.compress(b"\tA\n" + b"0" * (9 << 20)))
    assert path.stat().st_size < 20_000
    with pytest.raises(DatasetError, match=r"counts\.tsv\.gz: .*unpacks to more than"):
        USES["counts TSV.gz"](path)


@pytest.mark.parametrize("kind", ["checkpoint", "encoder, exported", "encoder, TorchScript", "encoder, timm of torch"])
def test_torch_files_that_unpack_to_far_more_are_refused(originals, tmp_path, kind):
    path = tmp_path / originals[kind].name
    with zipfile.ZipFile(originals[kind]) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr(f"{whole.namelist()[0].split('/')[0]}/data/99", bytes(80 << 20))
    with pytest.raises(ModelFileError, match="unpacks to"):
        USES[kind](path)


def test_what_a_library_quotes_of_a_file_is_one_line(originals, tmp_path):
    with pytest.raises(SlideError) as error:
        use_slide(damaged(originals, tmp_path, "DICOM", "bytes flipped", 471))
    assert str(error.value).isprintable()


def test_a_file_that_took_the_place_of_another_is_read_anew(tmp_path):
    for grey in (50, 200):
        Image.fromarray(np.full((64, 64, 3), grey, np.uint8)).save(tmp_path / "image.png")
        with open_slide(tmp_path / "image.png") as slide:
            assert (slide.read(0, 0, 0, 64, 64) == grey).all()


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_a_damaged_strip_is_an_error(tmp_path, region, compression):
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, region[:600, :600], compression=compression, rowsperstrip=64, photometric="rgb")
    with open_slide(path) as slide:
        assert abs(slide.read(0, 0, 0, 600, 600).astype(int) - region[:600, :600]).mean() < 4
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"strips.tif"), open_slide(path) as slide:
        slide.read(0, 0, 0, 600, 600)


def claim(path: Path, side: int, tile: int, compression: int) -> None:
    """A TIFF of one tile or strip, of a few bytes, that claims to be `side` x `side` pixels."""
    tags = {256: side, 257: side, 258: 8, 259: compression, 262: 2, 277: 3}
    tags |= {322: tile, 323: tile, 324: 500, 325: 100} if tile else {273: 500, 278: side, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(1000))


@pytest.mark.parametrize(
    ("side", "tile", "compression"),
    [(2**31 - 1, 256, 7), (2**31 - 1, 2**30, 1), (2**31 - 1, 0, 1), (100_000, 65_520, 1), (100_000, 0, 5)],
)
def test_tiffs_of_absurd_size_are_refused(tmp_path, side, tile, compression):
    claim(tmp_path / "absurd.tif", side, tile, compression)
    with pytest.raises(SlideError, match=r"absurd.tif"):
        use_slide(tmp_path / "absurd.tif")


def test_a_jpeg_tile_that_claims_to_be_huge_is_refused(tmp_path, originals):
    content = originals["TIFF, JPEG tiles"].read_bytes()
    frame = b"\xff\xc0\x00\x11\x08\x01\x00\x01\x00"  # baseline, 256 x 256
    assert frame in content
    (tmp_path / "tiles.tif").write_bytes(content.replace(frame, frame[:5] + b"\xff\xff\xff\xff"))
    with pytest.raises(SlideError, match=r"tiles.tif"):
        use_slide(tmp_path / "tiles.tif")


def test_images_of_absurd_size_are_refused(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "image.jpg")
    content = bytearray((tmp_path / "image.jpg").read_bytes())
    size = content.index(b"\xff\xc0") + 5
    content[size : size + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "image.jpg").write_bytes(content)
    for side in (60_000, 2**31 - 1):
        parts = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0" * 999)))
        chunks = (
            struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
        (tmp_path / f"{side}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    for path in tmp_path.iterdir():
        with pytest.raises(SlideError, match=path.name):
            use_slide(path)


@pytest.mark.parametrize("place", ["uns/stpredict", "var/_index", "obs/row", "X"])
@pytest.mark.parametrize("how", ["external link", "soft link", "dangling link", "external storage", "virtual"])
def test_results_that_point_elsewhere_are_refused(tmp_path, place, how):
    path = made_up(tmp_path / "s.h5ad", SPOTS, np.ones((len(SPOTS), 1))).path
    made_up(tmp_path / "secret.h5ad", SPOTS, np.ones((len(SPOTS), 1)))
    with h5py.File(path, "r+") as file:
        shape, dtype = file[place].shape, file[place].dtype
        numbers = np.dtype("S8") if h5py.check_string_dtype(dtype) else dtype
        if how == "soft link":
            file.move(place, "elsewhere")
        else:
            del file[place]
        if how == "external link":
            file[place] = h5py.ExternalLink("secret.h5ad", place)
        elif how in ("soft link", "dangling link"):
            file[place] = h5py.SoftLink("/elsewhere")
        elif how == "external storage":
            size = max(1, int(np.prod(shape))) * numbers.itemsize
            file.create_dataset(place, shape or (1,), numbers, external=[(str(tmp_path / "secret.h5ad"), 0, size)])
        else:
            layout = h5py.VirtualLayout(shape or (1,), numbers)
            layout[...] = h5py.VirtualSource("secret.h5ad", place, shape or (1,), numbers)
            file.create_virtual_dataset(place, layout)
    with pytest.raises(ResultError, match=r"s\.h5ad: "):
        use_result(path)


ODD_NAMES = ["<b>&amp;\"'", "../../etc/passwd", "a/b\\c", "C:", ".", "-rf", "=1+1", "x" * 10_000]


def test_odd_gene_names_reach_no_path_and_no_markup(tmp_path):
    values = np.random.default_rng(0).normal(5, 1, (len(SPOTS), len(ODD_NAMES)))
    result = made_up(tmp_path / "s.h5ad", SPOTS, values, genes=ODD_NAMES)
    out = tmp_path / "out"
    out.mkdir()
    written = [*draw(result, out, "heatmap", genes=ODD_NAMES[:3]), *draw(result, out, "channels", genes=ODD_NAMES)]
    assert len({path.resolve() for path in written}) == len(written)
    assert {path.parent.resolve() for path in written} == {out.resolve()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s.h5ad"]
    assert all(len(path.name) < 200 and not path.name.startswith("-") for path in written)


@pytest.mark.parametrize("name", ["A\0B", "A\nB", "\ud800", ""])
def test_gene_names_that_no_file_can_hold_are_refused_with_the_model(tmp_path, name):
    path = make_model(tmp_path / "odd.safetensors", names=["GNAS", name], held_out=[])
    with pytest.raises(ModelFileError, match="gene names"):
        load_model(path)


def test_a_link_at_an_outputs_name_is_replaced_and_not_followed(tiny_model_path, tmp_path, monkeypatch, region):
    monkeypatch.chdir(tmp_path)
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    tiff_pyramid(tmp_path / "s.tif", region[:1024, :1024], (0.5, 0.5))
    outputs = ["s.h5ad", "s.GNAS.heatmap.tif", "s.GNAS.heatmap.json", "s.GNAS.heatmap.png", "cohort.csv", "s.spots.csv"]
    for name in outputs:
        Path(name).symlink_to(treasure)
    asked = ("-m", tiny_model_path)
    assert run("predict", "s.tif", *asked, "--genes", "GNAS", "--engine", "eager", "--overwrite").exit_code == 0
    assert run("render", "s.h5ad", "--style", "heatmap", "--overwrite").exit_code == 0
    assert run("summary", "s.h5ad", "-o", "cohort.csv", "--overwrite").exit_code == 0
    assert run("tile", "s.tif", *asked, "--overwrite").exit_code == 0
    assert treasure.read_text() == "gold"
    assert not any(Path(name).is_symlink() for name in outputs)


def test_a_name_that_begins_with_a_dash_is_no_formula(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_up(Path("-x.h5ad"), SPOTS, np.ones((len(SPOTS), 1)))
    done = run("summary", "--", "-x.h5ad")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].startswith('"\'-x"')
