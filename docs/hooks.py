"""What the site needs beside docs/: the pages of the benchmarks, to which pages link as they lie in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

BENCHMARKS = Path(__file__).parents[1] / "tests" / "benchmarks"


def on_files(files: Files, config: Any) -> Files:
    """Add the benchmarks' pages."""
    for page in sorted(BENCHMARKS.glob("*.md")):
        files.append(File.generated(config, f"benchmarks/{page.name}", content=page.read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with links to where the benchmarks' pages lie in the site."""
    return markdown.replace("](../tests/benchmarks/", "](benchmarks/")
