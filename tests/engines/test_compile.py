from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from coordinates import assert_coordinates

import stpredict.engines.compile as compiling
from stpredict.engines.cache import cache_path
from stpredict.engines.check import compare
from stpredict.engines.eager import load_network, run_reference
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError

needs_compiler = pytest.mark.skipif(compiling.unavailable("cpu") is not None, reason=str(compiling.unavailable("cpu")))

REQUEST = EngineRequest("compile", "fp32", "cpu", batch_size=4)
#: Opens the engine where there is no compiler, and saves what it makes of patches.
OPEN_AGAIN = """
import sys
from pathlib import Path
import numpy as np
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.model.file import load_model
model, patches, output = sys.argv[1:]
request = EngineRequest("compile", "fp32", "cpu", batch_size=4)
engine = open_engine(load_model(Path(model)), request, np.load(patches), print)
np.save(output, np.concatenate(list(engine.infer(np.split(np.load(patches), 10)))))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory, referenced, small_patches):
    """A cache with a package of a quick model, the engine that was compiled, and what was said."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STPREDICT_CACHE", str(folder))
        engine = open_engine(referenced, REQUEST, small_patches, said.append)
    return folder, engine, said


@pytest.fixture
def cache(kept, monkeypatch):
    monkeypatch.setenv("STPREDICT_CACHE", str(kept[0]))
    return kept[0] / "engines"


@pytest.mark.processor
@needs_compiler
def test_a_package_gives_the_network_s_numbers_and_outputs_are_the_caller_s(
    kept, quick_model, referenced, small_patches
):
    _, engine, _ = kept
    assert (engine.name, engine.precision, engine.device, engine.verdict.passed) == ("compile", "fp32", "cpu", True)
    outputs = list(engine.infer(np.split(small_patches[:8], 2)))
    assert_coordinates(np.concatenate(outputs), referenced, quick_model, small_patches[:8])
    padded = np.concatenate([small_patches[:1], np.full_like(small_patches[:3], 255)])
    (tail,) = engine.infer([padded])
    np.testing.assert_array_equal(tail[0], outputs[0][0])


@needs_compiler
def test_any_thread_may_call_it_and_several_at_once(kept, small_patches):
    _, engine, _ = kept
    (here,) = engine.infer([small_patches[:4]])
    with ThreadPoolExecutor(4) as threads:
        for there in threads.map(lambda _: list(engine.infer([small_patches[:4]] * 3)), range(8)):
            np.testing.assert_array_equal(np.stack(there), np.stack([here] * 3))


@needs_compiler
def test_a_batch_of_another_size_is_refused_rather_than_read_beyond(kept, small_patches):
    _, engine, _ = kept
    with pytest.raises(ValueError, match=r"compiled for batches of \(4, 32, 32, 3\), not of \(3, 32, 32, 3\)"):
        list(engine.infer([small_patches[:3]]))


@needs_compiler
def test_another_process_loads_the_package_and_needs_no_compiler(kept, cache, referenced, small_patches, tmp_path):
    np.save(tmp_path / "patches.npy", small_patches)
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "empty"), "TMPDIR": str(tmp_path / "empty")}
    arguments = [referenced.path, tmp_path / "patches.npy", tmp_path / "output.npy"]
    ended = subprocess.run(
        [sys.executable, "-c", OPEN_AGAIN, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr  # nothing said of compiling
    np.testing.assert_array_equal(
        np.load(tmp_path / "output.npy"), np.concatenate(list(kept[1].infer(np.split(small_patches, 10))))
    )
    assert not [path for path in (tmp_path / "empty").rglob("*") if path.is_file()]  # nor is anything left
    assert {path.suffix for path in cache.iterdir()} == {".pt2", ".json"}


@needs_compiler
def test_a_package_is_loaded_with_its_verdict_where_it_fits_and_else_compiled_again(
    kept, cache, referenced, small_patches, monkeypatch
):
    said: list[str] = []
    again = open_engine(referenced, REQUEST, small_patches, said.append)
    assert (said, again.verdict) == ([], kept[1].verdict)
    compiled = []

    def compiles(_network, precision, shape, path):
        compiled.append((precision, shape))
        path.write_bytes(package.read_bytes())

    (package,) = cache.glob("compile-*.pt2")
    whole = package.read_bytes()
    monkeypatch.setattr(compiling, "write_package", compiles)
    open_engine(referenced, EngineRequest("compile", "fp32", "cpu", 4, threads=1), small_patches, print, keep=False)
    assert len(list(cache.glob("*.pt2"))) == len(compiled) == 1
    package.write_bytes(whole[:-1])  # its checksum is another
    with pytest.raises(EngineError, match="cannot compile"):  # as what is written here is damaged
        open_engine(referenced, REQUEST, small_patches, print)
    assert len(compiled) == 2
    package.write_bytes(whole)


def test_the_key_knows_all_that_a_package_depends_on(quick_model, monkeypatch):
    def path(precision="fp32", batch_size=4, threads=2):
        return cache_path("compile", compiling.cache_key(quick_model, precision, batch_size, threads))

    paths = [path(), path(precision="bf16"), path(batch_size=8), path(threads=1)]
    for name, other in (("processor_name", lambda: "another"), ("cpuinfo", lambda _field: "fpu")):
        with monkeypatch.context() as patch:
            patch.setattr(compiling, name, other)
            paths.append(path())
    monkeypatch.setattr(torch, "__version__", "2.99")
    paths.append(path())
    assert len(set(paths)) == len(paths)


@needs_compiler
def test_a_package_in_lower_precision(quick_model, small_patches, own_folder):
    engine = open_engine(
        quick_model, EngineRequest("compile", "bf16", "cpu", batch_size=8), small_patches, print, keep=False
    )
    output = np.concatenate(list(engine.infer(np.split(small_patches, 5))))
    assert output.dtype == np.float32
    assert compare(output, run_reference(quick_model, small_patches), "bf16").passed
    assert not list(own_folder.iterdir())


@needs_compiler
@pytest.mark.usefixtures("own_folder")
def test_what_a_gpu_is_given_is_one_graph_that_other_threads_may_call(quick_model, small_patches):
    torch.compiler.reset()
    run = compiling.compile_network(load_network(quick_model), "fp32", torch.device("cpu"))
    batch = torch.from_numpy(small_patches[:4])
    here = run(batch)
    with ThreadPoolExecutor(1) as threads:
        there = threads.submit(run, batch).result()
    torch.testing.assert_close(there, here, rtol=0, atol=0)
    np.testing.assert_allclose(here.numpy(), run_reference(quick_model, small_patches[:4]), atol=1e-3)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_on_a_gpu_no_cuda_graphs_are_captured_which_only_one_thread_could_replay(quick_model, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.update(options) or network)
    compiling.compile_network(load_network(quick_model), "bf16", torch.device("cuda"))
    options = torch._inductor.list_mode_options(asked["mode"])
    assert options["max_autotune"]
    assert not options.get("triton.cudagraphs", False)
    assert asked["fullgraph"] is True


@pytest.mark.usefixtures("own_folder")
def test_a_compiler_that_fails_is_an_error_that_says_so(quick_model, small_patches, monkeypatch):
    def broken(*_args):
        raise torch._dynamo.exc.InternalTorchDynamoError("no such kernel\nand much more")

    monkeypatch.setattr(compiling, "write_package", broken)
    monkeypatch.setattr(compiling, "unavailable", lambda _: None)
    with pytest.raises(EngineError, match=r"compile: torch cannot compile quick \(.*: no such kernel\)\."):
        open_engine(quick_model, REQUEST, small_patches, print)


@pytest.mark.usefixtures("own_folder")
def test_what_is_missing_is_named(quick_model, small_patches, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    with pytest.raises(EngineError, match="no C\\+\\+ compiler is installed; install g\\+\\+"):
        open_engine(quick_model, REQUEST, small_patches, print)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    assert compiling.unavailable("cuda") == "Triton is not installed; pip install triton"
