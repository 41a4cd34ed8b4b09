"""The command line as `python -m stpredict`."""

from __future__ import annotations

from stpredict.search_path import leave_out_working_folder


def main() -> None:
    """The program."""
    leave_out_working_folder()  # before any import that one of its files could replace
    from stpredict.cli import app

    app()


if __name__ == "__main__":
    main()
