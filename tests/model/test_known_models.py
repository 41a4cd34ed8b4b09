"""Published models, from files of their names and shapes in small.

The golden files are of random weights: what the published packages (`deepspotm` 1.0.0, STPath's network in
`lazyslide-models` 0.1.0) made of them, and, of the others, what torch's own layers make, member by member.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import DATA, SLIDE
from safetensors.torch import load_file, save_file

from stpredict.engines.eager import load_network
from stpredict.model.file import HEADS_READING_SLIDES, Model, load_model
from stpredict.model.narrowing import narrow
from stpredict.networks.encoder import Published
from stpredict.networks.published_head import KINDS, READ_SLIDES
from stpredict.result.file import read_result

ENCODER = "ctranspath_tiny.safetensors"
LAYERS = ("layer0.0.weight", "layer0.0.bias", "layer1.0.weight", "layer1.0.bias")
NAMES = ("path2space", "deepspot-m", "stpath", "deepspot", "histoprism")


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def members(**changes: torch.Tensor):
    """Path2Space's members by their folds, each in the bytes of a state dict."""
    known = golden("path2space_tiny") | changes
    for i in range(len(known[LAYERS[0]])):
        content = io.BytesIO()
        torch.save({name: known[name][i].clone() for name in LAYERS}, content)
        yield f"result_{i // 7}_{i % 7}_0/model_trained.pth", content.getvalue()


def archive(path: Path, files) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as target:
        for name, content in files:
            info = tarfile.TarInfo(f"mlp_ensemble/{name}")
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return path


class Phi(torch.nn.Module):
    """Under the names that DeepSpot's parts have."""

    def __init__(self, layer: torch.nn.Linear, place: int) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(place)), layer)


class Scaler:
    """As scikit-learn's."""


def whole_deepspot(tensors: dict[str, torch.Tensor], mean: np.ndarray, scale: np.ndarray) -> torch.nn.Module:
    network = torch.nn.Module()
    for part, place in (("phi_spot", 0), ("rho", 2)):
        layers = []
        for i in range(10):
            weight, bias = (tensors[f"{part}.{i}.model.{place}.{name}"].float() for name in ("weight", "bias"))
            layer = torch.nn.Linear(*reversed(weight.shape))
            layer.weight.data, layer.bias.data = weight, bias
            layers.append(Phi(layer, place))
        setattr(network, part, torch.nn.ModuleList(layers))
    network.scaler = Scaler()
    network.scaler.mean_, network.scaler.scale_ = mean, scale
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What users have downloaded."""
    folder = tmp_path_factory.mktemp("downloads")
    shutil.copy(DATA / ENCODER, folder)
    archive(folder / "mlp_ensemble.tar.gz", members())
    (folder / "genes.txt").write_text("\n".join("ABCDEF"))
    for file in (DATA / "deepspotm_tiny").iterdir():
        shutil.copy(file, folder)
    shutil.copy(DATA / "stpath_tiny.pth", folder / "stfm.pth")
    # Two symbols of most genes, in no order.
    ids = {f"S{i}": f"ENSG{(7 * i) % 12:011d}" for i in range(20)}
    (folder / "symbol2ensembl.json").write_text(json.dumps(ids))
    known = golden("deepspot_tiny")
    whole = whole_deepspot(load_file(DATA / "deepspot_tiny.safetensors"), known["mean"].numpy(), known["scale"].numpy())
    torch.save(whole, folder / "final_model.pkl")
    rows = ["gene_name,isPredicted", "UNSEEN,False", *(f"G{i},True" for i in range(6))]
    (folder / "info_highly_variable_genes.csv").write_text("\n".join(rows))
    shutil.copy(DATA / "histoprism_tiny.pt", folder / "best_model.pt")
    (folder / "oncotree_code_list.txt").write_text("BRCA\nLUAD\nPRAD\nCOAD\nSKCM\n")
    (folder / "stpath_genes.yaml").write_text("genes:\n" + "".join(f"- ENSG{i:011d}\n" for i in range(12)))
    return folder


def options(name: str, folder: Path) -> dict[str, object]:
    """Of the import; the tiny networks take patches of 56 px, so that pixels are larger than published."""
    encoder = {"--encoder": folder / ENCODER}
    return {
        "path2space": {
            **encoder, "--head": folder / "mlp_ensemble.tar.gz", "--genes": folder / "genes.txt", "--mpp": 100 / 56,
        },
        "deepspot-m": {"--head": folder / "model.safetensors", "--mpp": 2},
        "stpath": {
            **encoder, "--head": folder / "stfm.pth", "--genes": folder / "symbol2ensembl.json", "--organ": "kidney",
            "--technology": "Visium", "--mpp": 2,
        },
        "deepspot": {
            **encoder, "--head": folder / "final_model.pkl", "--genes": folder / "info_highly_variable_genes.csv",
            "--mpp": 2, "--tile-um": 112,
        },
        "histoprism": {
            **encoder, "--head": folder / "best_model.pt", "--genes": folder / "stpath_genes.yaml", "--organ": "COAD",
            "--mpp": 2,
        },
    }[name]  # fmt: skip


def bring_in(name: str, folder: Path, out: Path, **changes: object):
    chosen = options(name, folder) | {f"--{option.replace('_', '-')}": value for option, value in changes.items()}
    given = [part for option, value in chosen.items() if value is not None for part in (option, value)]
    return run("models", "import-known", name, *given, "-o", out)


@pytest.fixture(scope="module")
def imported(folder: Path):
    """Each model, brought in, with what was said of it."""
    found = {}
    for name in NAMES:
        done = bring_in(name, folder, folder / f"{name}.safetensors")
        assert done.exit_code == 0, done.output
        found[name] = load_model(folder / f"{name}.safetensors"), done
    return found


def network_of(model: Model) -> Published:
    network = load_network(model)
    assert isinstance(network, Published)
    return network


def expression(name: str, network: Published) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model makes of the golden inputs, and what it should, with all genes."""
    with torch.inference_mode():
        if name == "path2space":
            known = golden("path2space_tiny")
            return network.head(known["features"]), known["expression"]
        if name == "deepspot-m":
            known = golden("deepspotm_tiny")
            return network(known["patches"]), known["scgpt"]
        if name == "stpath":
            known = golden("stpath_tiny")
            described = network.head.describe(known["features"])
            tokens = network.head.among(described, known["coords"])
            return network.head.read(described[:, None], described[:, None, 0] < -1e9, tokens), known["kidney_visium"]
        if name == "histoprism":
            known = golden("histoprism_tiny")
            described = network.head.describe(known["features"])
            return network.head.read(described, described, network.head.among(described, described)), known["third"]
        known = golden("deepspot_tiny")
        described = network.head.describe(torch.cat([known["spot"][:, None], known["sub"]], dim=1))
        around = torch.zeros(len(described), 9, described.shape[1])
        around[:, 4] = described
        around[:, [0, 1, 2, 3, 5, 6, 7, 8], : described.shape[1] // 2] = network.head.reduce(known["neighbours"])
        nowhere = torch.zeros(len(described), 9, dtype=torch.bool)
        return network.head.read(around, nowhere, described[:, :0]), known["expression"]


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_published_code_does(imported, name: str):
    found, wanted = expression(name, network_of(imported[name][0]))
    assert float(wanted.std(dim=0).min()) > 1e-3  # spots differ
    np.testing.assert_allclose(found, wanted.float(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_genes_are_the_same_and_cost_no_others(imported, name: str):
    model = imported[name][0]
    genes = [model.panel[i] for i in (4, 0, 3)]
    few, columns = narrow(model, genes)
    found, wanted = expression(name, network_of(few))
    assert found.shape[1] == len(few.panel) == 3
    np.testing.assert_allclose(found[:, columns], wanted[:, [4, 0, 3]].float(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_predicts_a_slide_renders_and_says_where_it_comes_from(imported, tmp_path: Path, name: str):
    model, done = imported[name]
    said = {
        "path2space": ("Shulman et al. 2026", "breast", "Apache-2.0", "do not document"),
        "deepspot-m": ("Nonchev et al. 2026", "many tissues", "not for commercial use", "per 10,000"),
        "stpath": ("Huang et al. 2025", "17 organs", "all rights reserved", "log1p of raw counts"),
        "deepspot": ("Nonchev et al. 2025", "not stated", "MIT (code)", "per 10,000"),
        "histoprism": ("Hu et al. 2026", "29 cancers", "not for commercial use", "ln(1 + counts)"),
    }[name]
    for words in (*said, "never tested by this program", "stpredict evaluate"):
        assert words in done.stderr
    shown = run("models", "show", model.path)
    assert shown.exit_code == 0
    engine = "openvino" if name == "deepspot-m" else "eager"
    call = ("--pitch", "400", "--engine", engine, "--threads", "1", "-o", tmp_path / "out")
    predicted = run("predict", SLIDE, "-m", model.path, *call)
    assert predicted.exit_code == 0, predicted.output
    result = tmp_path / "out" / f"{SLIDE.stem}.h5ad"
    values = np.stack([read_result(result).expression(gene) for gene in model.panel])
    assert np.isfinite(values).all()
    assert np.ptp(values, axis=1).max() > 1e-3
    drawn = run("render", result, "--genes", model.panel[1], "-o", tmp_path / "drawn")
    assert drawn.exit_code == 0, drawn.output


def test_heads_that_read_slides_are_those_that_model_files_are_asked_for():
    told = {name for name, (_, module) in KINDS.items() if issubclass(module, READ_SLIDES)}
    assert told == set(HEADS_READING_SLIDES)


def test_path2space_is_read_from_its_folder_too(imported, folder: Path, tmp_path: Path):
    for name, content in members():
        (tmp_path / "mlp" / name).parent.mkdir(parents=True)
        (tmp_path / "mlp" / name).write_bytes(content)
    shutil.copy(folder / ENCODER, tmp_path)
    done = bring_in("path2space", folder, tmp_path / "p.safetensors", head=tmp_path / "mlp")
    assert done.exit_code == 0, done.output
    again = load_model(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(
        again.tensors["head.second_weight"], imported["path2space"][0].tensors["head.second_weight"]
    )
    assert again.card["parameters"]["stain"] == "macenko"


def test_deepspot_m_knows_genes_by_another_source(folder: Path):
    out = folder / "by-protein.safetensors"
    assert bring_in("deepspot-m", folder, out, gene_source="prott5").exit_code == 0
    known = golden("deepspotm_tiny")
    with torch.inference_mode():
        found = network_of(load_model(out))(known["patches"])
    np.testing.assert_allclose(found, known["prott5"], atol=1e-4)


def test_stpath_is_told_no_organ_unless_it_is_named(folder: Path):
    out = folder / "untold.safetensors"
    assert bring_in("stpath", folder, out, organ=None, technology=None).exit_code == 0
    known, network = golden("stpath_tiny"), network_of(load_model(out))
    assert network.config.n_genes == len(load_model(out).panel) == 12
    assert load_model(out).panel == sorted(load_model(out).panel)
    with torch.inference_mode():
        described = network.head.describe(known["features"])
        found = network.head.read(described, described, network.head.among(described, known["coords"]))
    np.testing.assert_allclose(found, known["pad"], atol=1e-4)


def deepspot_with(folder: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """DeepSpot's tensors as its owner may have saved them, with others or without some."""
    known, path = golden("deepspot_tiny"), folder / "deepspot-changed.safetensors"
    tensors = load_file(DATA / "deepspot_tiny.safetensors")
    tensors |= {"scaler.mean_": known["mean"], "scaler.scale_": known["scale"], **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_deepspot_is_read_from_tensors_too(imported, folder: Path):
    out = folder / "deepspot-2.safetensors"
    done = bring_in("deepspot", folder, out, head=deepspot_with(folder, {}))
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(
        load_model(out).tensors["head.last.weight"], imported["deepspot"][0].tensors["head.last.weight"]
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("path3space", {}, "choose one of path2space, deepspot-m, stpath, deepspot, histoprism"),
        ("simplep2g", {}, "SimpleP2G: has no reader of its own; bring it in by `stpredict models import --encoder"),
        ("Virchow", {}, "Virchow: an encoder without a head; train one by `stpredict train"),
        ("SEQUOIA", {}, "SEQUOIA: cannot be brought in, as it says one thing of 100 tiles together"),
        ("path2space", {"encoder": None}, "--encoder: name the file of path2space's encoder (CTransPath)"),
        ("path2space", {"genes": None}, "--genes: name the file of its genes, genes.txt"),
        ("path2space", {"genes": "one-less.txt"}, "predicts 6 genes, but 5 are named"),
        ("path2space", {"head": "few.tar.gz"}, "it has 3 of 154 members"),
        ("path2space", {"head": "cut.tar.gz"}, "cut short"),
        ("path2space", {"head": "genes.txt"}, "cannot be read as an archive"),
        ("path2space", {"encoder": "model.safetensors"}, "model.safetensors: gives 128 features of a patch"),
        ("deepspot-m", {"gene_source": "evo2"}, "knows genes by prott5, scgpt, not by evo2"),
        ("deepspot-m", {"encoder": ENCODER}, "deepspot-m has its own"),
        ("deepspot-m", {"head": ENCODER}, "not read as"),
        ("stpath", {"organ": "spleen"}, "knows no organ 'spleen'; it was trained on Spinal cord, Brain"),
        ("stpath", {"head": ENCODER}, "not read as STPath (it has no tensor 'input_encoder.gene_embed.weight')"),
        ("histoprism", {"organ": "LUSC"}, "choose one of BRCA, LUAD, PRAD, COAD, SKCM"),
        ("histoprism", {"head": "stfm.pth"}, "not read as HistoPrism (it has no tensor 'onco_embedder.weight')"),
        ("deepspot", {"tile_um": None}, "--tile-um: differs from file to file"),
        ("deepspot", {"head": "stfm.pth"}, "does not tell its genes' mean and deviation"),
        ("deepspot", {"head": {"scaler.mean_": None}}, "does not tell its genes' mean and deviation"),
        ("deepspot", {"head": {"scaler.mean_": torch.zeros(5)}}, "predicts 6 genes and scales 5"),
        ("deepspot", {"head": {"phi_spot.0.model.0.weight": torch.zeros(9, 32)}}, "not read as DeepSpot"),
        ("deepspot", {"head": {"phi_spot.3.model.0.bias": torch.full((8,), torch.nan)}}, "no numbers"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(folder: Path, tmp_path: Path, name: str, changes: dict, said: str):
    (folder / "one-less.txt").write_text("\n".join("ABCDE"))
    archive(folder / "few.tar.gz", list(members())[:3])
    (folder / "cut.tar.gz").write_bytes((folder / "mlp_ensemble.tar.gz").read_bytes()[:5000])
    files = {
        option: deepspot_with(folder, value) if isinstance(value, dict)
        else folder / value if option in ("head", "encoder", "genes") and value else value
        for option, value in changes.items()
    }  # fmt: skip
    if name not in NAMES:
        done = run("models", "import-known", name, "--head", folder / "stfm.pth", "-o", tmp_path / "out.safetensors")
    else:
        done = bring_in(name, folder, tmp_path / "out.safetensors", **files)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
