"""Draw docs/house.md from the layers that pyproject.toml has import-linter keep: `python docs/house.py`."""

# ruff: noqa: E501 (rows of a table)
from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("house.md")
INTRO = """# The house

Each room of `stpredict/` is a folder or, on the ground floor, a file. A room imports only rooms on floors below its
own: not those above it, nor those beside it on its floor. `lint-imports` keeps it so, from the layers in
`pyproject.toml`, and this page is drawn from them by `python docs/house.py`.

```mermaid
flowchart TB
{picture}
```

| floor | room | who lives there, and what it may import |
|---|---|---|
{rows}

## Which room for what is new

| you bring | it goes to |
|---|---|
| a slide format | `slides/slide.py`; `facts.py` there for what a file states, `samples.py` for its pixels' values |
| a suffix of slides | `batch/folders.py` for folders, `slides/slide.py` for plain images; `slides/unread.py` names what is not read |
| a layout of measured sections | a reader in `data/`, and its lines in `data/dataset.py`; gene lists: `data/gene_lists.py` |
| a network | a file in `networks/`, its trunk in `networks/trunks/`, its line in `networks/__init__.py` |
| ... and what else knows it | `PIXEL_SCALING` in `model/card.py`; how it is trained, in `training/` |
| an option of a network | a field of its configuration, named in its `OPTIONS`; `networks/options.py` reads it |
| a published checkpoint | `model/published.py`; weights of trunks and encoders: `networks/trunk_files.py`, `encoder_weights.py` |
| anyone's head on an encoder | its layers in `networks/published_head.py` (`KINDS`), its file in `model/head_files.py` |
| a published model of that kind | a reader that ends in `write_published` of `model/importing.py`, which says how |
| a published model that is known by name | its reader and its line (`KNOWN`) in `model/known_models.py`; its head in `networks/`, a line of `KINDS` |
| what an encoder wants done to stains | a file in `stain/`, its name in `STAINS` of `networks/encoder.py` |
| an engine | a file in `engines/`; `engine.py`, `opening.py` and `selection.py` there name it |
| a score | `statistics/metrics.py`, or `spatial.py` if it looks at neighbours; then `evaluation/pieces.py`, `scores.py` and `tables.py` |
| a picture | a file in `rendering/`, its line in `rendering/styles.py`, its suffix in `batch/folders.py` |
| what a result records | `prediction/provenance.py`; what decides its numbers: `requested_settings` in `prediction/preparation.py` |
| a reason to distrust a result | `prediction/doubts.py` |
| a way to spread slides over machines | `batch/`, beside `cluster.py`; `commands/predict.py` chooses |
| how `train` and `compare` train by default | `training/defaults.py` |
| how a paper trains | `training/recipes.py`, plain data; what a paper reports of a system: `comparison/papers.py` |
| a command | its options in `cli/`, what it does in `commands/`; exit codes: `errors.py`, `commands/inputs.py` |
| an option | where it stands in help: `cli/groups.py`; then `python docs/reference.py` writes the reference of commands |
| another program's format | a file in `result/`, its name in `commands/export.py` |
| what a machine can do | `machine.py`, told by `commands/doctor.py` |
"""


def floors() -> list[list[str]]:
    """Rooms per floor, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def what_lives_in(room: str) -> str:
    """The docstring of a room, as one line."""
    folder = ROOT / "stpredict" / room / "__init__.py"
    path = folder if folder.exists() else ROOT / "stpredict" / f"{room}.py"
    return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())


def page() -> str:
    house = floors()
    picture = []
    for number, rooms in zip(range(len(house), 0, -1), house, strict=True):
        inside = "; ".join(f'{room.strip("_")}["{room}"]' for room in rooms)
        picture.append(f'  subgraph f{number}["floor {number}"]\n    direction LR\n    {inside}\n  end')
    picture += [f"  f{number} --> f{number - 1}" for number in range(len(house), 1, -1)]
    rows = [
        f"| {number} | `{room}` | {what_lives_in(room)} |"
        for number, rooms in zip(range(len(house), 0, -1), house, strict=True)
        for room in rooms
    ]
    return INTRO.format(picture="\n".join(picture), rows="\n".join(rows))


if __name__ == "__main__":
    PAGE.write_text(page())
