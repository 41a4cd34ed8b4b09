from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from calls import PROGRAM
from conftest import SLIDE
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from stpredict import DEFAULT_MODEL, __version__

ROOT = Path(__file__).parents[1]
#: Not installed where these tests run, so that no version of it is pinned.
UNTRIED_EXTRAS = {"spatialdata", "tensorrt"}
#: What conda-forge calls otherwise.
CONDA_NAMES = {"torch": "pytorch", "openslide-bin": "openslide", "pyvips-binary": "libvips"}
#: Kinds of files that have a purpose in the package.
KINDS = {".py", ".typed", ".html", ".css", ".js", ".txt", ".safetensors", ".md"}
MAX_BYTES = 3_000_000


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: to build, to run (""), and by extra."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    lists = {
        "build": settings["build-system"]["requires"],
        "": project["dependencies"],
        **project["optional-dependencies"],
    }
    parsed = {part: [Requirement(line) for line in lines] for part, lines in lists.items()}
    return {part: [each for each in found if each.name != project["name"]] for part, found in parsed.items()}


def pinned(lines: Iterable[str]) -> dict[str, Version]:
    """The versions of a constraints file, each exact and without a local tag, which an index would not have."""
    found = {}
    for line in lines:
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            version = Version(specifier.version)
            assert (specifier.operator, requirement.url, version.local) == ("==", None, None), line
            assert canonicalize_name(requirement.name) not in found, line
            found[canonicalize_name(requirement.name)] = version
    return found


def broken(requirements: Iterable[Requirement], pins: dict[str, Version]) -> list[str]:
    """The requirements that no pin meets."""

    def is_met(requirement: Requirement) -> bool:
        pin = pins.get(canonicalize_name(requirement.name))
        return pin is not None and requirement.specifier.contains(pin)

    return [str(each) for each in requirements if not is_met(each)]


def installed(requirements: Iterable[Requirement]) -> dict[str, Version]:
    """The versions of all that these need, directly or not, in this environment."""
    todo = [(each, extra) for each in requirements for extra in ["", *each.extras]]
    done = set()
    while todo:
        requirement, extra = todo.pop()
        if (requirement.name, extra) not in done:
            done.add((requirement.name, extra))
            for each in map(Requirement, metadata.requires(requirement.name) or []):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    todo += [(each, extra) for extra in ["", *each.extras]]
    return {canonicalize_name(name): Version(metadata.version(name)) for name, _ in done}


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for part, requirements in declared().items():
        for each in requirements:
            assert {specifier.operator for specifier in each.specifier} == {">=", "<"}, (part, str(each))


def test_the_constraints_pin_every_dependency_within_its_bounds():
    pins = pinned((ROOT / "constraints.txt").read_text().splitlines())
    for part, requirements in declared().items():
        if part not in UNTRIED_EXTRAS:
            assert broken(requirements, pins) == [], part


def test_the_constraints_leave_no_version_open():
    pins = pinned((ROOT / "constraints.txt").read_text().splitlines())
    parts = declared()
    try:
        versions = installed(each for part in parts.keys() - UNTRIED_EXTRAS for each in parts[part])
    except metadata.PackageNotFoundError as error:
        pytest.skip(str(error))
    if others := sorted(name for name in versions.keys() & pins.keys() if versions[name].public != str(pins[name])):
        pytest.skip(f"other versions are installed here: {', '.join(others)}")
    # A torch for GPUs brings libraries that the CPU's does not.
    gpu = ("cuda", "nvidia", "triton")
    assert [name for name in versions if name not in pins and not name.startswith(gpu)] == []


def test_the_conda_recipe_asks_for_what_pyproject_asks_for():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra [docs]")
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts, asked = declared(), recipe["requirements"]
    python = Requirement(f"python{project['requires-python']}")
    runs = {CONDA_NAMES.get(each.name, each.name): each.specifier for each in [python, *parts[""]]}
    # The fourth number of openslide-bin counts its own packages of a version of OpenSlide.
    runs["openslide"] = SpecifierSet(str(runs["openslide"]).replace("4.0.0.6", "4.0.0"))
    assert {each.name: each.specifier for each in map(Requirement, asked["run"])} == runs
    builds = {each.name: each.specifier for each in [python, Requirement("pip"), *parts["build"]]}
    assert {each.name: each.specifier for each in map(Requirement, asked["host"])} == builds
    (script,) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(script)]
    assert recipe["context"]["version"] == __version__


def test_a_pin_that_is_missing_or_out_of_bounds_is_found():
    requirements = [Requirement("Some_Package>=1,<2"), Requirement("other>=1,<2")]
    assert broken(requirements, pinned(["some-package==1.5  # tested", "", "# other==1", "other==1.0"])) == []
    assert broken(requirements, pinned(["some-package==2.0"])) == ["Some_Package<2,>=1", "other<2,>=1"]
    with pytest.raises(AssertionError):
        pinned(["other==1.0+cpu"])
    with pytest.raises(AssertionError):
        pinned(["other>=1.0"])


def build(source: Path, output: Path, *targets: str) -> Path:
    """Build without isolation, so that nothing is fetched."""
    options = [option for target in targets for option in ("-t", target)]
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(output), *options]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return output


def files_in(folder: str) -> set[str]:
    """All files of a folder of the repository but caches."""
    paths = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
    cached = {path for path in paths if any(part[0] == "." or part == "__pycache__" for part in path.parts)}
    return {path.as_posix() for path in paths if path not in cached}


def assert_sizes(sizes: dict[str, int]) -> None:
    models = {name for name in sizes if PurePosixPath(name).suffix == ".safetensors"}
    assert {name for name, size in sizes.items() if size > MAX_BYTES} <= models


def test_slides_are_predicted_drawn_and_tiled_without_what_only_training_needs(tmp_path: Path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    missing = ("anndata", "matplotlib", "pandas", "pyarrow", "sklearn")
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n")
    environment = os.environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{Path(__file__).parents[1]}"}
    slide = ("-m", DEFAULT_MODEL, "--pitch", "300")

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)

    for arguments in (
        ("predict", SLIDE, *slide, "--genes", "GNAS"),
        ("render", "."),
        ("summary", "."),
        ("tile", SLIDE),
    ):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
    trained = call("train", ".", "-o", "m.safetensors")
    assert "install stpredict with its extra [train]" in trained.stderr


def test_wheel_and_sdist_hold_the_program_and_its_models_and_nothing_else(tmp_path: Path):
    build(ROOT, tmp_path, "sdist", "wheel")
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    models, package = files_in("models"), files_in("stpredict")

    with zipfile.ZipFile(wheel) as archive:
        checksums = {entry.filename: entry.CRC for entry in archive.infolist()}
        assert_sizes({entry.filename: entry.file_size for entry in archive.infolist()})
        archive.extractall(tmp_path / "installed")
    info = f"stpredict-{__version__}.dist-info"
    about = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]
    assert checksums.keys() == package | {f"stpredict/{name}" for name in models} | {f"{info}/{name}" for name in about}
    assert {PurePosixPath(name).suffix for name in package | models} <= KINDS
    assert {"stpredict/py.typed", f"stpredict/models/{DEFAULT_MODEL}.safetensors"} <= checksums.keys()

    base = PurePosixPath(sdist.name.removesuffix(".tar.gz"))
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() for member in archive)
        sizes = {PurePosixPath(member.name).relative_to(base).as_posix(): member.size for member in archive}
        archive.extractall(tmp_path, filter="data")
    assert_sizes(sizes)
    about = ["CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "constraints.txt", "pyproject.toml", ".gitignore"]
    about += ["CITATION.cff", "CONTRIBUTING.md", "Containerfile", "SKILL.md", "llms.txt", "mkdocs.yml"]
    assert sizes.keys() == package | models | files_in("tests") | files_in("docs") | files_in("conda") | set(about)

    (again,) = build(tmp_path / base, tmp_path / "again", "wheel").glob("*.whl")
    with zipfile.ZipFile(again) as archive:
        assert {entry.filename: entry.CRC for entry in archive.infolist()} == checksums

    # What was unpacked is what pip would install; it must find the models by itself.
    code = "from stpredict.model.file import list_models; print(*list_models().values(), sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "installed",
        env={name: value for name, value in os.environ.items() if name not in {"STPREDICT_MODELS", "PYTHONPATH"}},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = {Path(line).resolve() for line in run.stdout.splitlines()}
    package_folder = (tmp_path / "installed/stpredict").resolve()
    assert found == {package_folder / name for name in models if name.endswith(".safetensors")}, run.stderr
