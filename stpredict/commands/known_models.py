"""Bring in published models by name."""

from __future__ import annotations

from stpredict.commands.models import check_model_path, tell_import
from stpredict.errors import UsageError
from stpredict.model.import_known import KnownRequest, encoder_of, find_known, import_known
from stpredict.storage.files import demand_new, output_folders


def import_known_command(request: KnownRequest, overwrite: bool) -> None:
    """Write the model file and print its path. Raises UsageError or ModelFileError as `import_known` does."""
    encoder = encoder_of(request, find_known(request.name))
    check_model_path(request.out)
    for file in (encoder, request.files.head):
        if file.resolve() == request.out.resolve():
            raise UsageError(f"-o {request.out}: is the file that is to be brought in.")
    if not overwrite:
        demand_new(request.out)
    with output_folders(request.out.parent):
        card = import_known(request)
    tell_import(card, request.out, [encoder])
