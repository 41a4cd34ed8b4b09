"""How the program meets people: help in groups, first steps, completion, options from a file, its reference."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from calls import run

from stpredict.cli import app
from stpredict.cli.groups import GROUPS, long_name

ROOT = Path(__file__).parents[1]


def test_the_program_alone_says_what_to_type_next():
    done = run()
    assert done.exit_code == 0
    typed = re.findall(r"^  stpredict (\S+)", done.stdout, re.MULTILINE)
    assert typed == ["predict", "render", "--help"]


@pytest.mark.parametrize("name", GROUPS)
def test_help_lists_every_option_once_and_five_first(name):
    command = typer.main.get_command(app).commands[name]
    options = {long_name(each) for each in command.params if each.param_type_name == "option"}
    grouped = [option for group in GROUPS[name].values() for option in group]
    assert len(GROUPS[name]["Options"]) == 5
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= options
    told = run(name, "--help").stdout.split("\nArguments:\n")[1]
    for option in options:
        assert len(re.findall(rf"^  (?:-\w, )?--{option}\b(?!-)", told, re.MULTILINE)) == 1, option
    first = told.split("\nOptions:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (?:-\w, )?--([\w-]+)", first, re.MULTILINE) == list(GROUPS[name]["Options"])


def test_completion_is_installed_and_completes(tmp_path: Path):
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'stpredict'; from stpredict.cli import app; app()"]
    shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [*program, "--install-completion", "bash"], env=environment | shell, capture_output=True, text=True, check=True
    )
    assert "bash completion installed" in shown.stdout
    assert "_STPREDICT_COMPLETE=complete_bash" in (tmp_path / ".bash_completions/stpredict.sh").read_text()
    asked = {"_STPREDICT_COMPLETE": "complete_bash", "COMP_WORDS": "stpredict train --genes", "COMP_CWORD": "2"}
    completed = subprocess.run(program, env=environment | asked, capture_output=True, text=True)
    assert set(completed.stdout.split()) == {"--genes-file", "--genes-required"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("epoch = 3", "train has no 'epoch'; the nearest is 'epochs'."),
        ("config = 'b.toml'", "train has no 'config'"),
        ("epochs = ", "is no TOML"),
        ("epochs = true", "epochs is a text or a number."),
        ("epochs = [1, 2]", "epochs is a text or a number."),
        ("smooth-labels = 1", "smooth-labels is true or false."),
        ("hold-out = [true]", "hold-out is a text, a number, or a list of them."),
        ("epochs = 2.5", "--epochs"),
        ("epochs = -1", "--epochs"),
    ],
)
def test_a_file_of_options_that_cannot_be_is_one_sentence(tmp_path: Path, content: str, says: str):
    (tmp_path / "a.toml").write_text(content)
    done = run("train", tmp_path, "-o", tmp_path / "m.safetensors", "--config", tmp_path / "a.toml")
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_the_command_line_wins_over_the_file(tmp_path: Path):
    (tmp_path / "a.toml").write_text(
        f'dataset = "{tmp_path}/gone"\nout = "one.txt"\narch = "stnet"\nhold-out = ["A", "B"]\nsmooth-labels = true\n'
    )
    call = ("train", "--config", tmp_path / "a.toml")
    assert "-o one.txt: a model's file name ends in .safetensors." in run(*call).stderr
    assert "-o two.txt: a model's file name" in run(*call, "-o", "two.txt").stderr
    assert "--config gone.toml: cannot be read" in run("train", "--config", "gone.toml").stderr
    protocol = run(*call, "-o", "m.safetensors", "--protocol", "m2ort")
    assert "leave --hold-out, --smooth-labels out" in protocol.stderr


def test_the_reference_of_commands_is_what_the_program_says():
    pinned = re.search(r"^typer==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    if metadata.version("typer") != pinned[1]:
        pytest.skip(f"another typer than {pinned[1]} words help differently")
    specification = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert specification
    assert specification.loader
    reference = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reference)
    # If not: python docs/reference.py
    assert (ROOT / "docs" / "reference-commands.md").read_text() == reference.page()


def test_every_environment_variable_of_the_program_is_in_the_reference():
    page = (ROOT / "docs" / "reference-environment.md").read_text()
    read = re.compile(r"""environ(?:\.get\(|\.setdefault\(|\.pop\(|\[)\s*["']([A-Z_0-9]+)["']""")
    names = {name for path in (ROOT / "stpredict").rglob("*.py") for name in read.findall(path.read_text())}
    assert {"STPREDICT_MODELS", "STPREDICT_CACHE", "STPREDICT_DEBUG"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
