from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run
from conftest import SLIDE
from encoders_to_try import Tiny, export
from torch import nn

from stpredict.engines.eager import load_network, run_reference
from stpredict.model.file import load_model
from stpredict.model.narrowing import narrow
from stpredict.model.self_test import fixed_images, self_test_of
from stpredict.result.file import read_result

GENES = [f"G{i}" for i in range(6)]
N_FEATURES, PX = 9, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """An encoder and the list of genes."""
    folder = tmp_path_factory.mktemp("published")
    export(folder / "tiny.pt2", Tiny(), px=PX)
    (folder / "genes.txt").write_text("\n".join(GENES))
    return folder


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(N_FEATURES, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, len(GENES)))


def call(folder: Path, head: Path, *more: object, unit: str = "log2 of what they say"):
    fixed = ("--encoder", folder / "tiny.pt2", "--genes", folder / "genes.txt", "--mpp", "3.5", "--tile-um", "112")
    name = () if "--name" in more else ("-o", folder / f"{head.stem}-{head.suffix[1:]}.safetensors")
    return run("models", "import", *fixed, "--head", head, "--unit", unit, *name, *more)


def tissue(n: int = 3):
    return np.random.default_rng(0).integers(0, 256, (n, PX, PX, 3)).astype(np.uint8)


def features(patches):
    pixels = torch.from_numpy(patches).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        return Tiny()((pixels - mean) / std)


def write_head(folder: Path, kind: str) -> tuple[Path, tuple[str, ...], nn.Module]:
    """A head's file of each kind, the options that it needs, and what it computes."""
    network = mlp()
    if kind == "mlp.safetensors":
        safetensors.torch.save_file(network.state_dict(), folder / kind)
        return folder / kind, ("--activation", "relu"), network
    if kind == "program.pt2":
        return save_program(folder / kind, network), (), network
    if kind == "script.pt":
        torch.jit.save(torch.jit.script(network), folder / kind)
        return folder / kind, (), network
    linear = nn.Linear(N_FEATURES, len(GENES))
    if kind == "linear.safetensors":
        safetensors.torch.save_file(linear.state_dict(), folder / kind)
        return folder / kind, ("--last-activation", "softplus"), nn.Sequential(linear, nn.Softplus())
    mean, scale = torch.rand(N_FEATURES), torch.rand(N_FEATURES) + 0.5
    coef, intercept = (parameter.detach().numpy() for parameter in (linear.weight, linear.bias))
    np.savez(folder / kind, coef_=coef, intercept_=intercept, mean_=mean.numpy(), scale_=scale.numpy())
    return folder / kind, (), Standardised(linear, mean, scale)


class Standardised(nn.Module):
    def __init__(self, linear: nn.Module, mean: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.mean, self.scale = linear, mean, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x - self.mean) / self.scale)


def save_program(path: Path, network: nn.Module, width: int = N_FEATURES) -> Path:
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network.eval(), (torch.rand(2, width),), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("kind", ["mlp.safetensors", "program.pt2", "script.pt", "linear.safetensors", "ridge.npz"])
def test_heads_of_every_kind_compute_what_their_authors_do(folder: Path, kind: str):
    path, options, network = write_head(folder, kind)
    done = call(folder, path, *options)
    assert done.exit_code == 0, done.output
    model = load_model(Path(done.stdout.strip()))
    patches = tissue()
    with torch.no_grad():
        expected = network(features(patches)).numpy()
    np.testing.assert_allclose(run_reference(model, patches), expected, atol=1e-4)
    assert (model.panel, model.card["expression_unit"]) == (GENES, "log2 of what they say")
    np.testing.assert_allclose(self_test_of(model), run_reference(model, fixed_images(PX)), atol=1e-5)


def test_an_imported_model_predicts_what_was_asked_for_and_says_where_it_comes_from(folder: Path, tmp_path: Path):
    path, options, _ = write_head(folder, "mlp.safetensors")
    origin = ("--by", "A lab", "--licence", "CC-BY-NC-4.0", "--no-commercial", "--tissue", "lung", "--stain", "macenko")
    model = folder / "whole.safetensors"
    done = call(folder, path, *options, *origin, "-o", model)
    assert done.exit_code == 0, done.output
    assert "evaluate" in done.stderr
    out = tmp_path / "out"
    spots = ("--pitch", "400", "--engine", "eager")
    done = run("predict", SLIDE, "-m", model, *spots, "--allow-upsampling", "--genes", "G4,G1", "-o", out)
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stderr.splitlines() if "A lab" in line)
    for said in ("CC-BY-NC-4.0", "not for commercial use", "lung", "log2 of what they say", "never tested"):
        assert said in line
    some = read_result(out / "CMU-1-Small-Region.h5ad")
    done = run("predict", SLIDE, "-m", model, *spots, "--allow-upsampling", "-o", tmp_path / "all")
    every = read_result(tmp_path / "all" / "CMU-1-Small-Region.h5ad")
    assert [gene.name for gene in some.genes] == ["G4", "G1"]
    for gene in ("G4", "G1"):
        np.testing.assert_allclose(some.expression(gene), every.expression(gene), atol=1e-5)
        assert np.ptp(some.expression(gene)) > 0
    assert np.isnan([gene.held_out_correlation for gene in every.genes]).all()


def test_genes_that_were_not_asked_for_are_not_computed(folder: Path):
    path, options, _ = write_head(folder, "mlp.safetensors")
    model = load_model(Path(call(folder, path, *options, "-o", folder / "narrowed.safetensors").stdout.strip()))
    few, columns = narrow(model, ["G4", "G1"])
    assert few.tensors["head.last.weight"].shape == (2, 5)
    assert few.sha256 != model.sha256
    both = run_reference(few, tissue())
    np.testing.assert_allclose(both[:, columns], run_reference(model, tissue())[:, [4, 1]], atol=1e-5)
    np.testing.assert_array_equal(self_test_of(few), self_test_of(model)[:, [4, 1]])
    assert narrow(model, GENES)[0] is model


def test_the_self_test_notices_another_normalisation(folder: Path):
    from stpredict.engines.engine import EngineRequest
    from stpredict.engines.opening import open_engine
    from stpredict.errors import EngineError
    from stpredict.model.file import save_model

    path, options, _ = write_head(folder, "mlp.safetensors")
    model = load_model(Path(call(folder, path, *options, "-o", folder / "sound.safetensors").stdout.strip()))
    request, said = EngineRequest("eager", threads=1), []
    assert open_engine(model, request, tissue(), said.append).verdict.passed
    forgotten = {**model.card, "parameters": {**model.card["parameters"], "mean": [0, 0, 0], "std": [1, 1, 1]}}
    save_model(folder / "forgotten.safetensors", model.tensors, forgotten)
    with pytest.raises(EngineError, match="other values of a fixed image"):
        open_engine(load_model(folder / "forgotten.safetensors"), request, tissue(), said.append)


def test_what_its_publisher_gets_of_an_image_is_compared_and_kept(folder: Path, tmp_path: Path):
    path, options, network = write_head(folder, "mlp.safetensors")
    image = tissue(1)
    with torch.no_grad():
        output = network(features(image)).numpy()[0]
    np.savez(tmp_path / "theirs.npz", image=image[0], output=output[:4])
    done = call(folder, path, *options, "--expect", tmp_path / "theirs.npz", "-o", tmp_path / "m.safetensors")
    assert done.exit_code == 0, done.output
    kept = self_test_of(load_model(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(kept[2], [*output[:4], np.nan, np.nan])
    other = ("--encoder-mean", "0.7,0.6,0.7", "-o", tmp_path / "n.safetensors")
    refused = call(folder, path, *options, "--expect", tmp_path / "theirs.npz", *other)
    assert refused.exit_code == 2
    assert "--expect: of the publisher's image" in refused.stderr
    assert not (tmp_path / "n.safetensors").exists()
    np.savez(tmp_path / "small.npz", image=image[0, :9], output=output)
    refused = call(folder, path, *options, "--expect", tmp_path / "small.npz", *other)
    assert "not uint8 of 32 px" in refused.stderr


def test_the_network_is_as_it_was_without_its_files(folder: Path, tmp_path: Path):
    path, _, _ = write_head(folder, "program.pt2")
    written = Path(call(folder, path, "-o", folder / "moved.safetensors").stdout.strip())
    model = written.rename(tmp_path / "m.safetensors")
    refused = run("predict", SLIDE, "-m", model, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "tiny.pt2 beside it" in refused.stderr
    (tmp_path / "tiny.pt2").write_bytes((folder / "tiny.pt2").read_bytes())
    refused = run("predict", SLIDE, "-m", model, "-o", tmp_path / "out")
    assert "program.pt2 beside it" in refused.stderr
    (tmp_path / "program.pt2").write_bytes(path.read_bytes())
    assert load_network(load_model(model)).head.program is not None


def refusals(folder: Path) -> dict[str, tuple[Path, tuple[str, ...], str]]:
    def tensors(name: str, **arrays: torch.Tensor) -> Path:
        safetensors.torch.save_file({key.replace("_", "."): value for key, value in arrays.items()}, folder / name)
        return folder / name

    def written(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    n = len(GENES)
    whole = write_head(folder, "program.pt2")[0].read_bytes()
    linear = tensors("whole.safetensors", weight=torch.rand(n, N_FEATURES), bias=torch.rand(n)).read_bytes()
    two = {"a_weight": torch.rand(5, N_FEATURES), "b_weight": torch.rand(n, 5)}
    np.savez(folder / "objects.npz", coef_=np.array([{}], object))
    np.savez(folder / "wide.npz", coef_=np.ones((n, N_FEATURES + 1)))
    meta = nn.Linear(N_FEATURES, n, device="meta")
    torch.save(meta.state_dict(), folder / "meta.pth")
    return {
        "width": (tensors("w.safetensors", weight=torch.rand(n, 4)), (), "reads 4 features, but the encoder gives 9"),
        "genes": (tensors("g.safetensors", weight=torch.rand(3, 9)), (), "predicts 3 genes, but 6 are named"),
        "wide npz": (folder / "wide.npz", (), "reads 10 features"),
        "nan": (tensors("nan.safetensors", weight=torch.full((n, 9), torch.nan)), (), "not numbers (NaN)"),
        "meta": (folder / "meta.pth", (), "no values"),
        "pickle": (folder / "objects.npz", (), "pickled objects are not read"),
        "sklearn": (written("ridge.pkl", b"\x80\x04"), (), "np.savez"),
        "lfs": (written("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), (), "Git LFS pointer"),
        "login": (written("login.pt2", b"<!doctype html><html>Log in</html>"), (), "web page"),
        "half": (written("half.pt2", whole[: len(whole) // 2]), (), "its end is missing"),
        "half tensors": (written("half.safetensors", linear[:-20]), (), "its end is missing"),
        "other torch": (of_another_torch(folder / "program.pt2", folder / "newer.pt2"), (), "by another torch"),
        "activation": (tensors("two.safetensors", **two), (), "--activation tells"),
        "order": (
            tensors("two.safetensors", **two),
            ("--activation", "relu", "--layers", "b,a"),
            "reads 5 features",
        ),
        "names": (tensors("two.safetensors", **two), ("--activation", "relu", "--layers", "a"), "--layers: names a"),
        "others": (tensors("norm.safetensors", **two, norm_weight=torch.rand(5)), (), "not a linear layer or an MLP"),
        "unknown": (tensors("two.safetensors", **two), ("--activation", "wild"), "--activation wild"),
        "program": (save_program(folder / "other.pt2", nn.Linear(4, n), 4), (), "features, any number of them"),
        "program's genes": (save_program(folder / "few.pt2", nn.Linear(9, 2)), (), "gives (2, 2) of 2 patches"),
    }


def of_another_torch(program: Path, path: Path) -> Path:
    """The program as a torch to come might export it."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                said = json.loads(content)
                said["schema_version"]["major"] += 1
                content = json.dumps(said).encode()
            new.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def refused_files(folder: Path):
    return refusals(folder)


CASES = [
    "width", "genes", "wide npz", "nan", "meta", "pickle", "sklearn", "lfs", "login", "half", "half tensors",
    "other torch", "activation", "order", "names", "others", "unknown", "program", "program's genes",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_files_that_do_not_fit_are_refused_in_one_sentence_and_leave_nothing(folder: Path, refused_files, case: str):
    path, options, says = refused_files[case]
    out = folder / "refused" / "model.safetensors"
    refused = call(folder, path, *options, "-o", out)
    assert refused.exit_code == 2, refused.output
    assert says in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not out.parent.exists()
    assert set(refused_files) == set(CASES)


def test_encoders_that_are_none_are_refused(folder: Path, tmp_path: Path):
    path, options, _ = write_head(folder, "mlp.safetensors")
    for content, says in (
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<html>", "web page"),
        (b"Access to model paige-ai/Virchow is restricted. You must be authenticated", "accept the licence there"),
        (b'{"error":"Repository is gated"}', "accept the licence there"),
    ):
        for name in ("enc.pt2", "enc.safetensors", "enc.bin"):
            (tmp_path / name).write_bytes(content)
            refused = call(folder, path, *options, "--encoder", tmp_path / name, "-o", tmp_path / "m.safetensors")
            assert refused.exit_code == 2
            assert says in refused.stderr


def test_options_that_do_not_go_together_are_refused(folder: Path, tmp_path: Path):
    path, options, _ = write_head(folder, "mlp.safetensors")
    for more, says in (
        (("--tile-um", "-1"), "--tile-um -1"),
        (("--stain", "reinhard"), "--stain reinhard"),
        (("--measured", written_list(tmp_path, "OTHER")), "--measured: names OTHER"),
        (("--genes", written_list(tmp_path, *GENES[:5], GENES[0], name="twice.txt")), "names G0 more than once"),
    ):
        refused = call(folder, path, *options, *more, "-o", tmp_path / "no.safetensors")
        assert refused.exit_code == 2, refused.output
        assert says in refused.stderr
    refused = call(folder, path, *options, "-o", tmp_path / "no.safetensors", unit=" ")
    assert "--unit" in refused.stderr
    alone = run("models", "import", "--encoder", folder / "tiny.pt2", "--genes", folder / "genes.txt", "--mpp", "1")
    assert "--head" in alone.stderr
    mixed = run("models", "import", path, "--genes", folder / "genes.txt", "--mpp", "1", "--unit", "x")
    assert "--unit: only for a head" in mixed.stderr
    assert not (tmp_path / "no.safetensors").exists()


def written_list(folder: Path, *genes: str, name: str = "list.txt") -> Path:
    (folder / name).write_text("\n".join(genes))
    return folder / name
