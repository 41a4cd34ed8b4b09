"""Where modules come from: never from the working folder, neither here nor in child processes.

Python searches that folder first for `python -m`, for `python -c`, as child processes begin, and for empty entries of
PYTHONPATH. It would then run a file beside the slides, say `operator.py` or `types.py`, as part of this program.
"""

# ruff: noqa: PTH100, PTH109, PTH117, PTH118, PTH120
# Paths are texts here: pathlib imports many modules, and a file of the working folder could replace any of them.
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH, PYTHON_PATH = "PYTHONSAFEPATH", "PYTHONPATH"
#: A call from one of these folders still needs the packages that are installed there.
INSTALLED = ("site-packages", "dist-packages")


def leave_out_working_folder() -> None:
    """Take the working folder, and all entries relative to it, off the search path, also for child processes.

    A folder that PYTHONPATH names by its whole path stays. A folder that this program runs from goes to the end.
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
    """The same, but only in this context: for child processes that another program starts."""
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
