"""Import a head that somebody fitted to an encoder's features, as a model file.

To add a published model, write a function that reads its files into a `PublishedConfig` and the tensors of that
network, and gives them with an `ImportRequest` to `write_published`. That attaches the encoder, makes the self-test,
and writes the card and the file. To add another kind of head, see `networks/published_head.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stpredict
from stpredict.errors import ModelFileError, UsageError
from stpredict.model.file import can_name_files, check_card, save_model
from stpredict.model.head_files import read_head
from stpredict.model.origin import NEVER_TESTED, Origin
from stpredict.model.self_test import Expected, demand_expected, fixed_images, self_test_outputs, self_test_tensors
from stpredict.networks import network_parameters, own_state
from stpredict.networks.encoder import Published, PublishedConfig
from stpredict.networks.encoder_files import count_features, open_encoder, open_program
from stpredict.networks.encoder_settings import EncoderSettings
from stpredict.networks.published_head import Program, ProgramConfig


@dataclass(frozen=True)
class ImportRequest:
    """A model to import: its encoder's file, its genes in order, what it predicts, and what is known about it.

    `unit` is the authors' words for the output. Patches are `tile_um` wide, read at `mpp` um per pixel.
    """

    encoder: Path
    settings: EncoderSettings
    genes: Sequence[str]
    unit: str
    mpp: float
    tile_um: float
    spot_diameter_um: float
    pitch_um: float
    out: Path
    origin: Origin
    expected: Expected | None = None  # its output for an image, from its publisher
    measured: Sequence[str] | None = None  # genes that a training section measured; None if unknown

    @property
    def patch_px(self) -> int:
        return round(self.tile_um / self.mpp)


def import_head(
    request: ImportRequest, head: Path, activation: str | None = None, last_activation: str = "none",
    layers: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write a model file from an encoder, a head and the names of its genes; returns the card.

    Raises ModelFileError or UsageError, before anything is written, for files and options that do not fit together.
    """
    check_import(request)
    encoder = open_encoder(request.encoder, request.patch_px, request.settings.vit)
    width = count_features(encoder, request.patch_px, request.encoder.name)
    read = read_head(head, width, len(request.genes), activation, last_activation, layers)
    known = request.settings
    config = PublishedConfig(
        len(request.genes), width, known.file, known.sha256, known.mean, known.std, request.patch_px, vit=known.vit,
        stain=known.stain, head=read.config,
    )  # fmt: skip
    tensors = {f"head.{name}": tensor for name, tensor in read.tensors.items()}
    if read.feature_mean is not None:
        tensors["feature_mean"] = read.feature_mean
    if read.feature_scale is not None:
        tensors["feature_scale"] = read.feature_scale
    return write_published(request, config, tensors, encoder, head)


def check_import(request: ImportRequest) -> None:
    """Raises UsageError for sizes and names that no model can have."""
    sizes = {
        "--mpp": request.mpp, "--tile-um": request.tile_um, "--spot-diameter": request.spot_diameter_um,
        "--pitch": request.pitch_um,
    }  # fmt: skip
    for option, value in sizes.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{option} {value:g}: must be a positive number of micrometres.")
    if not 16 <= request.patch_px <= 4096:
        raise UsageError(
            f"--tile-um {request.tile_um:g}: at --mpp {request.mpp:g} a tile is {request.patch_px} px wide, and "
            "patches are 16 to 4096 px."
        )
    if not request.unit.strip() or not request.unit.isprintable():
        raise UsageError("--unit: say in the authors' words what the output is, or `not documented`.")
    if not can_name_files(request.out.stem):
        raise UsageError(f"{request.out}: {request.out.stem!r} cannot be a model's name.")
    stray = sorted(set(request.measured or ()) - set(request.genes))
    if stray:
        raise UsageError(f"--measured: names {stray[0]}, which is not among the model's genes.")


def write_published(
    request: ImportRequest, config: PublishedConfig, tensors: Mapping[str, Tensor], encoder: nn.Module, head: Path
) -> dict[str, Any]:
    """Write the model file of a published network; returns its card.

    `tensors` are those of the network, without the features' mean and scale if these are 0 and 1. `head` is the file
    that they come from. Raises ModelFileError for tensors that do not fit, or outputs that are no numbers, and
    UsageError for a card that no model can have. A failed call leaves no file behind.
    """
    with torch.device("meta"):
        network = Published(config)
    neutral = {"feature_mean": torch.zeros(config.n_features), "feature_scale": torch.ones(config.n_features)}
    try:
        network.hold({**neutral, **tensors})
    except RuntimeError as error:
        raise ModelFileError(f"{head.name}: its tensors do not fit ({' '.join(str(error).split())[:200]}).") from error
    if isinstance(network.head, Program):
        network.head.program = open_program(head, "a head")
    network.encoder = encoder
    images, expected = fixed_images(request.patch_px), request.expected
    if expected:
        images = np.concatenate([images, expected.image[None]])
    outputs = self_test_outputs(network.eval(), images, len(request.genes))
    if expected:
        outputs[2] = demand_expected(outputs[2], expected, outputs[1])
    card = make_imported_card(request, config, head)
    arrays = {
        name: tensor.detach().cpu().numpy().astype(np.float32, copy=False)
        for name, tensor in own_state(network).items()
    }
    arrays.update(self_test_tensors(outputs, expected.image if expected else None))
    try:
        check_card(card, arrays)
    except ValueError as error:
        raise UsageError(f"{request.out}: a model file cannot hold this ({error}).") from error
    save_model(request.out, arrays, card)
    return card


def make_imported_card(request: ImportRequest, config: PublishedConfig, head: Path) -> dict[str, Any]:
    """The card of a model that others made: their statements about it, and nothing about how good it is."""
    kind = "program" if isinstance(config.head, ProgramConfig) else "head"
    known = {key: value for key, value in asdict(replace(request.settings)).items() if value is not None}
    measured = None if request.measured is None else set(request.measured)
    return {
        "name": request.out.stem,
        "architecture": f"a {kind} on {config.file}",
        "parameters": network_parameters(config),
        "panel": list(request.genes),
        "patch_px": request.patch_px,
        "mpp": request.mpp,
        "spot_diameter_um": request.spot_diameter_um,
        "pitch_um": request.pitch_um,
        "pixel_scaling": ("Macenko's normalisation, then " if config.stain else "")
        + "RGB uint8 / 255, less the encoder's mean, over its deviation",
        "objective": None,
        "expression_unit": request.unit.strip(),
        "genes": {
            "training_mean": None,
            "training_spread": None,
            "display_range": None,
            **({} if measured is None else {"measured_in_training": [gene in measured for gene in request.genes]}),
        },
        "published": {key: value for key, value in asdict(request.origin).items() if value is not None},
        "training": {
            "imported_from": head.name,
            "encoder": known,
            "licence": "of the data it was trained on; not restated here",
            "imported": datetime.now(UTC).date().isoformat(),
            "stpredict": stpredict.__version__,
            "torch": torch.__version__,
        },
        "held_out": [],
        "intended_use": f"Research use only, and {NEVER_TESTED}.",
    }
