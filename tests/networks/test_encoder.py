from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from encoders_to_try import Tiny, export
from torch import nn

from stpredict.errors import ModelFileError
from stpredict.networks.encoder_files import count_features, file_sha256, find_encoder, open_encoder


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export(tmp_path / "tiny.pt2", Tiny())


def test_both_kinds_of_files_give_what_the_encoder_gives(exported: Path, tmp_path: Path):
    torch.jit.save(torch.jit.trace(Tiny().eval(), torch.rand(2, 3, 32, 32)), tmp_path / "tiny.pt")
    pixels = torch.rand(5, 3, 32, 32)
    for path in (exported, tmp_path / "tiny.pt"):
        encoder = open_encoder(path)
        torch.testing.assert_close(encoder(pixels), Tiny()(pixels))
        assert count_features(encoder, 32, path.name) == 9
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_files_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"torch\.export\.save"):
        open_encoder(tmp_path / "weights.onnx")
    with pytest.raises(ModelFileError, match="no such file"):
        open_encoder(tmp_path / "weights.safetensors")
    for name in ("a.pt2", "a.pt"):
        (tmp_path / name).write_bytes(b"PK\3\4 nonsense")
        with pytest.raises(ModelFileError, match="cannot be read as an encoder"):
            open_encoder(tmp_path / name)
        with pytest.raises(ModelFileError, match="cannot be read"):
            open_encoder(tmp_path / f"missing-{name}")
    with pytest.raises(ModelFileError, match="cannot be read"):
        file_sha256(tmp_path / "missing")


def test_encoders_that_give_no_row_per_patch_are_refused(tmp_path: Path):
    maps = export(tmp_path / "maps.pt2", nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelFileError, match="not a row of features for each"):
        count_features(open_encoder(maps), 32, maps.name)
    fixed = export(tmp_path / "fixed.pt2", Tiny(), dynamic=False)
    with pytest.raises(ModelFileError, match="any number of patches of 32 px"):
        count_features(open_encoder(fixed), 32, fixed.name)


class Marked:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("where", ["sample_inputs/model.pt", "weights/weight_0", "constants/custom_obj_0"])
def test_pickled_code_is_not_run(exported: Path, tmp_path: Path, where: str):
    """Each place of an exported program from which torch would unpickle."""
    mark, bad = tmp_path / "it-ran", tmp_path / "bad.pt2"
    payload = io.BytesIO()
    torch.save(Marked(mark), payload)
    content = pickle.dumps(Marked(mark)) if "custom_obj" in where else payload.getvalue()
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(where):
                data = content
            elif name.endswith("weights_config.json") and "weights" in where:
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            elif name.endswith("constants_config.json") and "constants" in where:
                data = (b'{"config": {"x": {"path_name": "custom_obj_0", "is_param": false, "use_pickle": true, '
                        b'"tensor_meta": null}}}')  # fmt: skip
            target.writestr(name, data)
        if "constants" in where:
            target.writestr("archive/data/constants/custom_obj_0", content)
    with pytest.raises(ModelFileError):
        open_encoder(bad)
    assert not mark.exists()


def test_encoders_are_found_by_name_and_content(exported: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    sha256 = file_sha256(exported)
    assert find_encoder("tiny.pt2", sha256, [other, tmp_path]) == exported
    with pytest.raises(ModelFileError, match=r"beside it, or in the folder \$STPREDICT_MODELS"):
        find_encoder("tiny.pt2", sha256, [other])
    (other / "tiny.pt2").write_bytes(b"another")
    assert find_encoder("tiny.pt2", sha256, [other, tmp_path]) == exported
    with pytest.raises(ModelFileError, match="sha256"):
        find_encoder("tiny.pt2", sha256, [other])
    with pytest.raises(ModelFileError, match="no file's name"):
        find_encoder("../tiny.pt2", sha256, [other])
