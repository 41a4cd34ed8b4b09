"""What the flags of spots find and how often they are wrong: writes quality.md beside this script.

    python tests/benchmarks/quality.py HER2ST_FOLDER RUN_FOLDER    (about 15 minutes)

RUN_FOLDER is what the training of the default model left, MODEL.run. Artefacts are painted on patches of the example
slide and of the folder's sections. False alarms are counted on all spots that `predict` would choose at a pitch of 100
um, as if every one of them were faultless.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from stpredict import DEFAULT_MODEL
from stpredict.data.her2st import read_her2st
from stpredict.engines.eager import load_network
from stpredict.model.file import Model, find_model, load_model
from stpredict.model.reference import Reference, length, reference_of
from stpredict.prediction.quality import flag_spots, measure_patches, typical_density, unusual_share
from stpredict.result.file import FLAGS, UNUSUAL
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import open_slide, resolve_mpp

HERE = Path(__file__).parent
SLIDE = HERE.parent / "data" / "CMU-1-Small-Region.svs"
MODEL_MPP, PATCH_PX, PITCH_UM = 0.69, 224, 100.0
#: Patches of each slide that artefacts are painted on.
N_PAINTED = 150
ROUNDS = 30
#: What inks let pass of red, green and blue.
INKS = {
    "blue": (0.15, 0.30, 0.75), "green": (0.15, 0.60, 0.35), "black": (0.10, 0.10, 0.12),
    "red": (0.85, 0.15, 0.20), "purple": (0.45, 0.15, 0.65),
}  # fmt: skip
NOTES = """\
- Pale spots of C4 are glass tinged with eosin, which the tissue mask took for tissue; B4's folds are dense nuclei.
- Blur of 0.7 µm is noticed on the sections, which are softer than the example slide, of 1 µm on both.
- Red and purple ink look like blood and haematoxylin: they are not flagged as pen, but are unusual and mostly dense,
  hence a fold.
- Folds are only found where they fill more than half of a patch, and two layers of pale tissue look like one of dense.
- By colours alone, a blurred patch is as usual as a sharp one.""".splitlines()
Paint = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blurred(sigma: float, quality: int | None = None) -> Paint:
    def paint(patch: np.ndarray, _: np.random.Generator) -> np.ndarray:
        soft = ndimage.gaussian_filter(patch.astype(float), (sigma, sigma, 0)).round().astype(np.uint8)
        return soft if quality is None else as_jpeg(soft, quality)

    return paint


def as_jpeg(patch: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(patch).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def inked(ink: tuple[float, float, float], half: bool) -> Paint:
    """A stroke that covers the patch or half of it, through which the tissue shows."""

    def paint(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(covered(patch, rng, half), patch * np.array(ink), patch).round().astype(np.uint8)

    return paint


def denser(times: float, half: bool = False) -> Paint:
    """Optical density times a number: twice in a fold of two layers, less than once in diluted stain."""

    def paint(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        changed = 255 * (patch / 255) ** times
        return np.where(covered(patch, rng, half), changed, patch).round().astype(np.uint8)

    return paint


def mixed(side: int) -> Paint:
    """The colours of each square in another order."""

    def paint(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(patch) // side
        squares = patch.reshape(n, side, n, side, 3).swapaxes(1, 2).reshape(n, n, side * side, 3)
        return rng.permuted(squares, axis=2).reshape(n, n, side, side, 3).swapaxes(1, 2).reshape(patch.shape)

    return paint


def enlarged(patch: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The middle of the patch, twice as large, as with a wrong resolution."""
    quarter = len(patch) // 4
    return np.asarray(Image.fromarray(patch[quarter:-quarter, quarter:-quarter]).resize(patch.shape[:2]))


def covered(patch: np.ndarray, rng: np.random.Generator, half: bool) -> np.ndarray:
    """All pixels, or those on one side of a line through the patch's centre."""
    y, x = (np.indices(patch.shape[:2]) - patch.shape[0] / 2)[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    return (x * np.cos(angle) + y * np.sin(angle) > 0) | (not half)


ARTEFACTS: list[tuple[str, str, Paint]] = [
    *((f"Gaussian blur, sigma {sigma * MODEL_MPP:.1f} µm", "blurred", blurred(sigma)) for sigma in (1, 1.5, 2, 3, 5)),
    ("Gaussian blur, sigma 1.4 µm, then JPEG of quality 80", "blurred", blurred(2, 80)),
    ("Gaussian blur, sigma 3.5 µm, then JPEG of quality 80", "blurred", blurred(5, 80)),
    *((f"{name} ink, {part}", "pen", inked(ink, part == "half")) for name, ink in INKS.items()
      for part in ("all over", "half")),
    ("twice the density, all over", "fold", denser(2)),
    ("twice the density, half", "fold", denser(2, half=True)),
    ("three times the density, all over", "fold", denser(3)),
    ("three times the density, half", "fold", denser(3, half=True)),
    *((f"stain diluted to {share:.0%}", "pale", denser(share)) for share in (0.5, 0.3, 0.2, 0.1)),
    ("pixels of 6 µm mixed", UNUSUAL, mixed(8)),
    ("pixels of 39 µm mixed", UNUSUAL, mixed(56)),
    ("enlarged twice", UNUSUAL, enlarged),
]  # fmt: skip


def patches_of(path: Path, mpp: float | None) -> np.ndarray:
    """The patches that `predict` would cut, in the lattice's order."""
    with open_slide(path) as slide:
        settled = resolve_mpp(slide, mpp)
        _, spots, _ = choose_spots(slide, settled, GridRequest(100.0, PITCH_UM), 2)
        raster = make_raster(slide, settled, MODEL_MPP)
        patches = np.empty((len(spots), PATCH_PX, PATCH_PX, 3), np.uint8)
        for index, block in read_patches(raster, spots.centres, PATCH_PX):
            patches[index] = block
    return patches


def measured(patches: np.ndarray, model: Model) -> np.ndarray:
    """The measures of patches as a prediction has them."""
    measures = measure_patches(patches, reference_of(model))
    measures[:, 0] = np.fmax(measures[:, 0], distance_read(patches, model))
    return measures


def distance_read(patches: np.ndarray, model: Model) -> np.ndarray:
    """How far what the network's head reads of patches lies from what it read of the training patches."""
    network = load_network(model)
    with torch.inference_mode():
        outputs = [network(part).numpy() for part in torch.from_numpy(patches).split(32)]
    return length(np.concatenate(outputs)[:, len(model.panel) :])


def false_alarms(slides: dict[str, np.ndarray], model: Model) -> Iterator[str]:
    yield "| untouched spots of | spots | unusual | " + " | ".join(FLAGS) + " |"
    yield "|" + "---|" * (3 + len(FLAGS))
    for name, patches in slides.items():
        measures = measured(patches, model)
        flags = flag_spots(measures, typical_density(measures))
        shares = [unusual_share(measures), *(flags[flag].mean() for flag in FLAGS)]
        yield f"| {name} | {len(patches):,} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"


def recall(slides: dict[str, np.ndarray], model: Model) -> Iterator[str]:
    yield "| painted | flag | " + " | ".join(slides) + " | other flags | unusual | by colours alone |"
    yield "|" + "---|" * (5 + len(slides))
    reference = reference_of(model)
    typical = {name: typical_density(measure_patches(patches, reference)) for name, patches in slides.items()}
    for what, flag, paint in ARTEFACTS:
        rng = np.random.default_rng(0)
        found, others, strange, by_colours = [], [], [], []
        for name, patches in slides.items():
            some = patches[rng.permutation(len(patches))[:N_PAINTED]]
            painted = np.stack([paint(patch, rng) for patch in some])
            measures = measured(painted, model)
            flags = flag_spots(measures, typical[name])
            strange.append(unusual_share(measures))
            by_colours.append(unusual_share(measure_patches(painted, reference)))
            found.append(strange[-1] if flag == UNUSUAL else flags[flag].mean())
            others.append(np.any([flags[other] for other in FLAGS if other != flag], axis=0).mean())
        cells = [f"{share:.0%}" for share in (*found, np.mean(others), np.mean(strange), np.mean(by_colours))]
        yield f"| {what} | {flag} | " + " | ".join(cells) + " |"


def left_out(slides: dict[str, np.ndarray], run: Path) -> Iterator[str]:
    """Unusual spots of sections that a model had not seen, by what is compared."""
    yield "| section | model trained on | unusual by colours | by what the head reads | by either |"
    yield "|---|---|---|---|---|"
    for folder in sorted(run.glob("fold-*")):
        model, fold = load_model(folder / "model.safetensors"), json.loads((folder / "scores.json").read_text())
        for name in fold["test"]:
            colours = measure_patches(slides[name], reference_of(model))
            either = measured(slides[name], model)
            read = (distance_read(slides[name], model) > 1).mean()
            cells = f"{unusual_share(colours):.1%} | {read:.1%} | {unusual_share(either):.1%}"
            yield f"| {name} | {', '.join(fold['train'])} | {cells} |"


def cost(patches: np.ndarray, reference: Reference | None) -> Iterator[str]:
    batch = np.ascontiguousarray(patches[:16])
    measure_patches(batch, reference)
    seconds = []
    for _ in range(ROUNDS):
        start = time.thread_time()  # unlike wall time the same while others use the machine
        measure_patches(batch, reference)
        seconds.append((time.thread_time() - start) / len(batch))
    yield (
        f"All measures of a patch but the network's together take {statistics.median(seconds) * 1e3:.2f} ms of one "
        f"core's time (median of {ROUNDS} batches of {len(batch)}; {max(seconds) * 1e3:.2f} ms at most)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("her2st", type=Path, help="folder of sections in the HER2ST layout")
    parser.add_argument("run", type=Path, help="folder MODEL.run of the default model's training")
    arguments = parser.parse_args()
    sections = read_her2st(arguments.her2st)
    slides = {"example slide": patches_of(SLIDE, None)}
    slides |= {section.name: patches_of(section.image, float(np.mean(section.mpp))) for section in sections}
    model = load_model(find_model(DEFAULT_MODEL))
    lines = [
        "# Quality flags",
        "",
        f"Written by `python tests/benchmarks/quality.py HER2ST_FOLDER RUN_FOLDER`. Spots are those of `predict` at a "
        f"pitch of {PITCH_UM:g} µm; artefacts are painted on {N_PAINTED} of each slide's patches (all, where there are "
        "fewer). "
        f"`unusual` is by the reference of {DEFAULT_MODEL}, which was trained on the sections named by letters.",
        "",
        "The thresholds were set on these very slides, two scanners, for few false alarms; expect more on others.",
    ]
    parts = (
        false_alarms(slides, model), recall(slides, model), left_out(slides, arguments.run),
        cost(slides["example slide"], reference_of(model)),
    )  # fmt: skip
    for part in parts:
        for line in ("", *part):
            lines.append(line)
            print(line, flush=True)
    lines += ["", *NOTES]
    (HERE / "quality.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
