"""How papers train, as data: `--recipe published` is each system's own, and `m2ort-paper` trains all of them alike.

A recipe sets the fields here and no more. `ours` says in words which of the paper's choices it does not take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stpredict.errors import UsageError
from stpredict.networks import FITTED
from stpredict.networks.options import base_name
from stpredict.training.defaults import BATCH_SIZE, EPOCHS, LEARNING_RATE, OBJECTIVE


@dataclass(frozen=True)
class Recipe:
    """A network's training on measured spots. Rates are those of `Settings`, constant or the peak of a schedule.

    `weight_decay` is decoupled in "adamw", else added to the gradient. "steps" multiplies the rate by `step_factor`
    every `step_epochs`. `keeps` says which epoch's network is kept: the best on validation sections, or the last.
    """

    name: str
    source: str
    optimiser: Literal["adamw", "adam", "sgd"]
    learning_rate: float
    epochs: int
    batch_size: int
    objective: str
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Literal["one-cycle", "constant", "steps"] = "constant"
    step_epochs: int = 0
    step_factor: float = 1.0
    clips_gradients: bool = False
    turns: bool = True  # each patch is one of its eight flips and rotations, at random
    keeps: Literal["best", "last"] = "best"
    normalisation: str = "total"
    smooth_labels: bool = False
    test_time_mean: bool = False  # held-out spots are predicted as the mean over the eight flips and rotations
    ours: str = ""


#: This program's own recipe, the default; `Settings` has the rates that options set.
OURS = Recipe(
    "ours", "this program", "adamw", LEARNING_RATE, EPOCHS, BATCH_SIZE, OBJECTIVE, weight_decay=0.05,
    schedule="one-cycle", clips_gradients=True,
)  # fmt: skip
#: Table 5 of Wang et al. 2024 trains every system alike.
M2ORT_PAPER = Recipe(
    "m2ort-paper", "M2ORT (Wang et al. 2024), which trains every system alike", "adam", 1e-4, 100, 96, "mse",
    ours="slide-level systems take a section at a time; patches are turned by quarters, not freely, and the paper does "
    "not say whether weights of ImageNet were begun with",
)  # fmt: skip
_M2ORT = replace(
    M2ORT_PAPER, name="published", source="M2ORT (Wang et al. 2024)",
    ours="patches are turned by quarters, not freely; the paper does not say with which weights it begins",
)  # fmt: skip
_M2OST = replace(
    _M2ORT, source="the released script of M2OST (Wang et al. 2025)", epochs=200, batch_size=48,
    ours="the epoch is chosen on validation sections, not on the test; all views are turned alike",
)  # fmt: skip
_TRIPLEX = replace(
    _M2ORT, source="TRIPLEX (Chung et al. 2024), epochs of its released code", epochs=200, batch_size=128,
    schedule="steps", step_epochs=50, step_factor=0.9, normalisation="1e4", smooth_labels=True,
    ours="the epoch is chosen on validation sections, not on the test",
)  # fmt: skip
_STNET = Recipe(
    "published", "ST-Net (He et al. 2020)", "sgd", 32e-6, 50, 32, "mse", momentum=0.9, test_time_mean=True,
    ours="labels are ln(1 + CPM), not ln((1 + count) / (genes + total)); ImageNet's mean and deviation, not those of "
    "the first batches; one set of validation sections chooses the epoch, not four; its rate of 1e-6 is on a sum over "
    "the batch of 32",
)  # fmt: skip
_DEEPSPACE = Recipe(
    "published", "DeepSpaCE (Monjo et al. 2022)", "adam", 1e-4, 10, 128, "smooth-l1", weight_decay=1e-4,
    ours="no SCTransform before the labels are scaled; patches are flipped and turned, not cropped, shifted in colour "
    "or blurred; patches of the model's field, not of 2.5 spot radii; no pseudo-labels; epochs are chosen by the "
    "depth-controlled correlation",
)  # fmt: skip
_HISTOGENE = Recipe(
    "published", "the authors' tutorial of HisToGene (Pang et al. 2021)", "adam", 1e-5, 100, 1, "mse", turns=False,
    keeps="last", normalisation="panel-1e4",
    ours="a batch is a section, whatever is said of its size; labels are natural logarithms, not decadic "
    "ones; spots are placed by their pitch",
)  # fmt: skip
_HIST2ST = Recipe(
    "published", "the released code of Hist2ST (Zeng et al. 2022)", "adam", 1e-5, 350, 1, "mse", schedule="steps",
    step_epochs=50, step_factor=0.9, turns=False, keeps="last", normalisation="panel-1e4",
    ours="a batch is a section, whatever is said of its size; labels are natural logarithms, not decadic "
    "ones; spots are placed by their pitch, and a lone one reads itself",
)  # fmt: skip
_ISTAR = Recipe(
    "published", "the released code of iStar (Zhang et al. 2024)", "adam", 1e-4, 400, 128, "mse", turns=False,
    keeps="last",
    ours="it is trained on other sections than it predicts, on ln(1 + CPM), not on counts scaled per gene; one "
    "state, not the median of five, unless --arch istar:states=5; features of one layout of tiles, not means over 16, "
    "unless --arch istar:shifts=4",
)  # fmt: skip
_BLEEP = Recipe(
    "published", "BLEEP (Xie et al. 2023)", "adamw", 1e-3, 4, 256, "mse", weight_decay=1e-3, normalisation="1e4",
    ours="counts per 10,000, not per the median depth; no Harmony over all slides, the test's among them; both sides "
    "of the loss have the same targets; the epoch is chosen on validation sections, not on random spots",
)  # fmt: skip
_EGN = Recipe(
    "published", "EGN (Yang et al. 2023)", "adamw", 5e-4, 50, 32, "mse", weight_decay=1e-4, turns=False,
    ours="labels are ln(1 + CPM), not log10(1 + count) scaled per gene; the rate is constant, not restarted by "
    "cosines; exemplars are of other patients; the epoch is chosen on validation sections, not on the test",
)  # fmt: skip
#: Each system's own recipe. ResNet50, ViT-B/16 and CrossViT were not made for expression; their recipes are those of
#: papers that compare with them.
PUBLISHED = {
    **{f"m2ort-{size}{mixing}": _M2ORT for size in ("small", "base", "large") for mixing in ("", "-cross")},
    "m2ost": _M2OST,
    **dict.fromkeys(("triplex", "triplex-bc2", "triplex-scc"), _TRIPLEX),
    "stnet": _STNET,
    "deepspace": _DEEPSPACE,
    **dict.fromkeys(("histogene", "histogene-4", "histogene-224"), _HISTOGENE),
    **dict.fromkeys(("hist2st", "hist2st-224"), _HIST2ST),
    "istar": _ISTAR,
    "bleep": _BLEEP,
    "egn": _EGN,
    **dict.fromkeys(("resnet50", "vit-b16"), _M2ORT),
    **dict.fromkeys(("crossvit-small", "crossvit-base"), _M2OST),
}
RECIPES = ("ours", "published", "m2ort-paper")


def find_recipe(name: str, architecture: str) -> Recipe | None:
    """The recipe of this name for an architecture; None for ours.

    Raises UsageError for another name, and if no paper has a recipe for the architecture.
    """
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: choose {', '.join(RECIPES)}.")
    if name == "ours":
        return None
    if architecture in FITTED:
        raise UsageError(f"--recipe {name}: {architecture} is fitted at once, by this program's own recipe.")
    if name == "m2ort-paper":
        return M2ORT_PAPER
    known = PUBLISHED.get(base_name(architecture))
    if known is None:
        raise UsageError(f"--recipe published: no paper's recipe for {architecture} is known here.")
    return known
