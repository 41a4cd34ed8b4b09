"""List models."""

from __future__ import annotations

from stpredict import DEFAULT_MODEL
from stpredict.console import printable, report
from stpredict.errors import StpredictError
from stpredict.weights import list_models, load_model


def list_command() -> None:
    """Print the installed models, one a line."""
    for name, path in list_models().items():
        try:
            model = load_model(path)
        except StpredictError as error:
            report(f"stpredict: {error}")
            continue
        told = f"{name}  {model.card['architecture']}, {len(model.panel)} genes, {model.card['mpp']:g} um/px"
        print(printable(told + (", default" if name == DEFAULT_MODEL else "")))
