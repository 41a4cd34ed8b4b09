"""Where modules come from: never from the folder that the caller stands in, here or in child processes.

Python puts that folder first for `python -m` and `python -c`, as child processes begin, and for empty entries of
PYTHONPATH. A file of a folder of slides, `operator.py` or `types.py`, would then be run as part of this program.
"""

# ruff: noqa: PTH100, PTH109, PTH117, PTH118, PTH120
# Paths are texts here: pathlib imports much that a file of the working folder could stand in for.
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH, PYTHON_PATH = "PYTHONSAFEPATH", "PYTHONPATH"
#: Whoever stands in one of these still needs what is installed there.
INSTALLED = ("site-packages", "dist-packages")


def leave_out_working_folder() -> None:
    """Take the working folder, and all that is named relative to it, off the search path, for children, too.

    A folder that PYTHONPATH names by its whole path stays. One that this program is run from goes to the end.
    """
    here = _working_folder()
    given = os.environ.get(PYTHON_PATH, "").split(os.pathsep)
    named = [entry for entry in given if os.path.isabs(entry)]
    relative = (os.path.normpath(os.path.join(here, entry)) for entry in given if entry not in named)
    unwanted = {here, *relative} - {os.path.normpath(entry) for entry in named}
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    needed = {os.path.dirname(os.__file__), *(entry for entry in sys.path if entry.endswith(INSTALLED))}
    kept = [entry for entry in sys.path if os.path.isabs(entry) and (entry not in unwanted or entry in needed)]
    sys.path[:] = kept if home in kept or home not in unwanted else [*kept, home]
    os.environ[SAFE_PATH] = "1"
    if named:
        os.environ[PYTHON_PATH] = os.pathsep.join(named)
    else:
        os.environ.pop(PYTHON_PATH, None)


@contextmanager
def working_folder_left_out() -> Iterator[None]:
    """The same for processes that are started meanwhile, in a program that is not this one's own."""
    path, before = [*sys.path], {name: os.environ.get(name) for name in (SAFE_PATH, PYTHON_PATH)}
    leave_out_working_folder()
    kept = {*sys.path}
    try:
        yield
    finally:
        added = [entry for entry in sys.path if entry not in kept]
        sys.path[:] = [*path, *added]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
