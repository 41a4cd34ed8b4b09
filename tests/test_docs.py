from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from stpredict.cli import app

ROOT = Path(__file__).parents[1]
ENTRIES = ("README.md", "CONTRIBUTING.md", "SKILL.md", "llms.txt")
PAGES = [ROOT / name for name in ENTRIES] + sorted((ROOT / "docs").glob("*.md"))
TROUBLES = ROOT / "docs" / "troubleshooting.md"
GENERATED = ROOT / "docs" / "reference-commands.md"
#: How a part that differs from call to call stands in a quoted message.
OPEN = "…"


def prose(text: str) -> str:
    """A page without its blocks of code, whose lines are no headings and hold no links."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Where links may lead within a page, by the names that GitHub gives headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    """The relative links of a text, seen from a page's place, that lead to no file or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path):
    assert dead_links(page, page.read_text()) == []


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](no.md) [b](predict.md#no-such-heading) [c](predict.md#folders) [d](predict.md)"
    assert dead_links(TROUBLES, text) == ["no.md", "predict.md#no-such-heading"]


def test_every_page_stands_in_the_index_and_in_the_site():
    index, site = (ROOT / "docs" / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in names if f"]({name})" not in index or f" {name}\n" not in site} == set()


def commands(text: str) -> list[str]:
    """The calls of stpredict that a page shows, in blocks and in lines, but those with something left to fill in."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    shell = [line for kind, block in blocks if kind in ("", "bash") for line in block.splitlines()]
    found = [part for line in shell for part in line.split("&&")]
    found += [code for _, code in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose(joined), re.DOTALL)]
    calls = [re.search(r"^(?:\$ |(?:srun|torchrun) .*|\s*)?(stpredict [^|]+)", call.strip()) for call in found]
    split = [shlex.split(call[1], comments=True) for call in calls if call]
    return [shlex.join(call) for call in split if not {"...", "…", "--help"} & set(call)]


@cache
def program() -> Any:
    return typer.main.get_command(app)


def refused(call: str) -> str:
    """What the program's own parser has against a call, "" if nothing; a command alone only has to be there."""
    command, args = program(), shlex.split(call)[1:]
    context = typer.Context(command, info_name="stpredict")
    try:
        while hasattr(command, "commands") and args and not args[0].startswith("-"):
            _, command, args = command.resolve_command(context, args)
            context = typer.Context(command, parent=context, info_name=command.name)
        if args and not hasattr(command, "commands"):
            command.make_context(command.name, args, parent=context.parent)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return f"{call}: {error.format_message()}"
    return ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=lambda page: page.name)
def test_every_command_is_one_that_the_program_takes(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert [said for call in commands(page.read_text()) if (said := refused(call))] == []


def test_a_command_that_the_program_does_not_take_is_found():
    text = (
        "`stpredict predct a.svs`\n```\nstpredict render a.h5ad --colour red   # red\nsrun stpredict tile \\\n a\n```\n"
    )
    assert commands(text) == ["stpredict render a.h5ad --colour red", "stpredict tile a", "stpredict predct a.svs"]
    assert ["No such" in refused(call) for call in commands(text)] == [True, False, True]


@cache
def messages() -> frozenset[str]:
    """Every string of the program, with OPEN for what is filled in; a constant that is filled in stands in full."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "stpredict").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    constants: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            constants.setdefault(node.targets[0].id, set()).add(node.value.value if is_text else OPEN)  # type: ignore[attr-defined]
    return frozenset(text for node in nodes for text in texts(node, constants))


def texts(node: ast.AST, constants: dict[str, set[str]]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        parts = []
        for part in node.values:
            filled = part.value if isinstance(part, ast.FormattedValue) else None
            values = constants.get(filled.id, set()) if isinstance(filled, ast.Name) else set()
            known = next(iter(values)) if len(values) == 1 else OPEN
            parts.append(part.value if isinstance(part, ast.Constant) else known)
        yield re.sub(f"{OPEN}+", OPEN, "".join(map(str, parts)))


def quoted(page: str) -> list[str]:
    """The messages that a page quotes: headings that are code."""
    return [found[1] for found in re.findall(r"^### (`+) ?(.+?) ?\1$", page, re.MULTILINE)]


def test_every_message_that_is_explained_is_still_a_message_of_the_program():
    explained = quoted(TROUBLES.read_text())
    assert len(explained) >= 30
    assert [each for each in explained if each not in messages()] == []


def test_a_message_that_the_program_does_not_have_is_found():
    (explained,) = quoted("### `…: the file does not tell its micrometres per pixel.`\n")
    assert explained not in messages()


def test_every_message_has_a_cause_and_a_cure():
    for entry in re.split(r"^### ", TROUBLES.read_text(), flags=re.MULTILINE)[1:]:
        assert re.search(r"^\*\*Cause\.\*\* .+^\*\*Cure\.\*\* ", entry, re.MULTILINE | re.DOTALL), entry[:80]


def test_the_site_builds_without_a_warning(tmp_path: Path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "troubleshooting" / "index.html").exists()
