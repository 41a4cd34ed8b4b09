"""The rows of accuracy.py in which M2ORT is taught densely, but not as `stpredict train` does.

- `m2ort-dense-around`: besides the lesson of its own square, each token learns the mean lesson of squares of twice and
  four times the side around it, and of the four squares that lie half a token beside it, up or down and left or right;
- `m2ort-dense-fine`: besides the lesson of its own square, each token learns what the dictionary sees in each of its 16
  parts, squares of 4 px: how near the window around the part's middle is to each centre;
- `m2ort-dense-masked`: in half of the patches, a share of the tokens is replaced by a learnt one before the encoders
  (He et al. 2022, CVPR, "Masked autoencoders are scalable vision learners"), and is taught its lesson all the same.
  The other patches stay whole, as those are that it predicts from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accuracy_splits import Part
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.networks import FLAGSHIP, architecture_config
from stpredict.networks.dictionary import Dictionary
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.prediction.on_device import turned
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.statistics.normalisation import NORMALISATIONS
from stpredict.training.dense import LESSONS, WHOLE_WEIGHT, DenselyTaught, Lessons, read_lessons, write_lessons
from stpredict.training.dense import teach_densely as teach_own
from stpredict.training.dictionary import learn_windows
from stpredict.training.fit import Course, Step, fit, predict_z
from stpredict.training.heads import describe_patches, fit_map, write_taught_head
from stpredict.training.log import Log
from stpredict.training.processes import in_bf16
from stpredict.training.sampling import Stage
from stpredict.training.settings import Settings, teach_learning_rate
from stpredict.training.teachers import BATCH, DictionaryTeacher

CPU = torch.device("cpu")
LESSON_ROWS = {
    "m2ort-dense-around": "`m2ort-dense`, each token taught also squares of twice and four times the side around its "
    "own, and four that lie half a token beside it",
    "m2ort-dense-fine": "`m2ort-dense`, each token taught also what the dictionary sees in each of its 16 parts",
    "m2ort-dense-masked": "`m2ort-dense`, taught with 40 % of the tokens masked in half of the patches",
}
#: How many lessons beside its own a token learns, two wider and four shifted, and what they weigh beside it.
AROUND, AROUND_WEIGHT = 6, WHOLE_WEIGHT
#: Side of a token's parts, px; what they weigh together; on how many patches the spread of their lessons is computed.
PART_PX, PARTS_WEIGHT, N_PATCHES = 4, WHOLE_WEIGHT, 300
MASKED_TOKENS, MASKED_PATCHES = 0.4, 0.5


def teach_lessons(row: str, part: Part, seed: int) -> Float:
    """Expression of the tested spots by the flagship, taught as the row says; its head fitted along programmes."""
    tiles, settings, folder = part.tiles, Settings(FLAGSHIP, seed=seed), part.scratch / "dense" / f"{row}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    course = Course(settings, Log(folder / "log.csv", lambda line: print(f"{row}: {line}", flush=True)), folder, CPU)
    config = architecture_config(FLAGSHIP, n_genes=len(part.panel), patch_px=tiles.patch_px)
    assert isinstance(config, M2ORTConfig)
    torch.manual_seed(seed)
    network = MaskedM2ORT(config) if row.endswith("masked") else M2ORT(config)
    places = np.flatnonzero(np.isin(tiles.unlabelled_section, part.sections))
    teacher, rows = DictionaryTeacher(learn_windows(tiles, part.sections, 1, seed)), np.flatnonzero(part.train)
    teach = {"m2ort-dense-around": teach_around, "m2ort-dense-fine": teach_parts}.get(row, teach_own)
    lessons = teach(network, teacher, tiles, places, course)
    said = read_lessons(lessons, describe_patches(network, tiles, rows, CPU))
    found, _ = fit_map(said, rows, tiles, part.panel, part.objective, NORMALISATIONS[settings.normalisation])
    write_taught_head(network, lessons, found)
    return part.objective.expression(predict_z(network, tiles, np.flatnonzero(part.test), CPU))


class MaskedM2ORT(M2ORT):
    """M2ORT with some tokens replaced while it is trained."""

    def __init__(self, config: M2ORTConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.width))

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        x = super().embed(levels)
        if not self.training:
            return x
        masked = (torch.rand(x.shape[:2]) < MASKED_TOKENS) & (torch.rand(len(x), 1) < MASKED_PATCHES)
        return torch.where(masked[..., None], self.mask_token.to(x.dtype), x)


class TaughtMore(DenselyTaught):
    """A network that predicts, for each token, the lesson of its own square and so many `others`."""

    def __init__(self, network: M2ORT, values: int, others: int) -> None:
        super().__init__(network, network.config.width, network.config.width, values)
        self.of_others = nn.Linear(network.config.width, others * values)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        tokens, _ = self.network.tokens(patches)
        return self.of_token(tokens), self.of_others(tokens)


def teach_around(network: M2ORT, teacher: DictionaryTeacher, tiles: Tiles, places: Int, course: Course) -> nn.Linear:
    """As `teach_densely`, on lessons of squares of half a token's side, of which all others are means."""
    side = 2 * network.config.patch_px // network.config.token_px
    lessons = write_lessons(teacher, tiles, places, side, course.folder / LESSONS, CPU, course.log.report)
    return teach_more(TaughtMore(network, teacher.values, AROUND), around_step(lessons), tiles, places, course)


def teach_more(student: TaughtMore, step: Step, tiles: Tiles, places: Int, course: Course) -> nn.Linear:
    epochs = -(-course.settings.teach_patches // len(places))
    stage = Stage("teach", places, epochs, teach_learning_rate(course.settings), varied=False)
    read = partial(tiles.read_patches, unlabelled=True)
    for epoch, loss, seconds in fit(student, read, step, stage, course):
        course.log.add(stage.name, epoch, loss, seconds)
    (course.folder / LESSONS).unlink()
    return student.of_token


def around_step(lessons: Lessons) -> Step:
    """The loss of a batch of patches, each turned at random together with its lessons."""
    batches = [lessons.places[start : start + BATCH] for start in range(0, len(lessons.places), BATCH)]
    sums = [(len(x), x.double().sum((0, 1)), x.double().square().sum((0, 1)), x.shape[1])
            for x in (lessons_around(lessons.of(batch)) for batch in batches)]  # fmt: skip
    n = sum(patches * tokens for patches, _, _, tokens in sums)
    mean = sum(each for _, each, _, _ in sums) / n
    spread = (sum(each for _, _, each, _ in sums) / n - mean**2).sqrt() + 1e-6
    mean, spread = mean.float(), spread.float()

    def step(model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        codes = torch.randint(SYMMETRIES, (len(items),)).tolist()
        fine = torch.stack([turned(each, code) for each, code in zip(lessons.of(items), codes, strict=True)])
        patches = torch.stack([turned(each, code) for each, code in zip(patches, codes, strict=True)])
        wanted = (lessons_around(fine) - mean) / spread
        with in_bf16(CPU):
            own, around = model(patches)
        of_own, of_around = wanted.split([own.shape[2], around.shape[2]], dim=2)
        return F.mse_loss(own.float(), of_own) + AROUND_WEIGHT * F.mse_loss(around.float(), of_around)

    return step


def lessons_around(fine: Tensor) -> Tensor:
    """Of squares of half a token's side, N x 2s x 2s x values, each token's lessons: N x s*s x (1 + AROUND) values.

    Its own is the first. What would lie outside the patch is left out of a mean.
    """
    x = fine.permute(0, 3, 1, 2)
    wider = [F.avg_pool2d(x, size, 2, size // 2 - 1, count_include_pad=False) for size in (2, 4, 8)]
    beside, side = F.avg_pool2d(x, 2, 2, 1, count_include_pad=False), x.shape[2] // 2
    shifted = [beside[..., i : i + side, j : j + side] for i in (0, 1) for j in (0, 1)]
    return torch.cat([*wider, *shifted], dim=1).flatten(2).transpose(1, 2)


def teach_parts(network: M2ORT, teacher: DictionaryTeacher, tiles: Tiles, places: Int, course: Course) -> nn.Linear:
    """As `teach_densely`, each token also on the lessons of its parts, which are made as patches are read."""
    side, parts = network.config.patch_px // network.config.token_px, network.config.token_px // PART_PX
    lessons = write_lessons(teacher, tiles, places, side, course.folder / LESSONS, CPU, course.log.report)
    rng = np.random.default_rng(course.settings.seed)
    some = rng.choice(places, min(N_PATCHES, len(places)), replace=False)
    of_parts = lessons_of_parts(teacher.network)
    spread = moments(of_parts, tiles, np.sort(some))
    step = parts_step(lessons, of_parts, *spread, parts)
    return teach_more(TaughtMore(network, teacher.values, parts**2), step, tiles, places, course)


def lessons_of_parts(dictionary: Dictionary) -> Callable[[Tensor], Tensor]:
    """What makes of patches N x P x P x 3 the nearness of windows around each PART_PX square: N x s x s x centres.

    Windows are larger than the squares; those at the edge see the patch's outermost pixels repeated.
    """
    config = dictionary.config
    margin = (config.window_px - PART_PX) // 2
    network = Dictionary(replace(config, stride_px=PART_PX, patch_px=config.patch_px + 2 * margin))
    network.load_state_dict(dictionary.state_dict())

    def of_patches(patches: Tensor) -> Tensor:
        wider = F.pad(patches.permute(0, 3, 1, 2).float(), 4 * [margin], mode="replicate").permute(0, 2, 3, 1)
        near = network.nearness(wider).transpose(1, 2)
        side = config.patch_px // PART_PX
        return near.reshape(len(patches), side, side, config.centres)

    return torch.inference_mode()(of_patches)


def moments(of_parts: Callable[[Tensor], Tensor], tiles: Tiles, places: Int) -> tuple[Tensor, Tensor]:
    """Mean and spread of each value over the parts of patches at `places`."""
    n, total, squares = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for start in range(0, len(places), BATCH):
        patches = torch.from_numpy(tiles.read_patches(places[start : start + BATCH], unlabelled=True))
        values = of_parts(patches).flatten(0, 2).double()
        n, total, squares = n + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / n
    return mean.float(), ((squares / n - mean**2).clamp(min=0).sqrt() + 1e-6).float()


def parts_step(
    lessons: Lessons, of_parts: Callable[[Tensor], Tensor], mean: Tensor, spread: Tensor, parts: int
) -> Step:  # fmt: skip
    """The loss of a batch of patches, each turned at random together with its lessons."""
    own_mean, own_spread = lessons.moments()

    def step(model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        codes = torch.randint(SYMMETRIES, (len(items),)).tolist()
        own = (lessons.of(items) - own_mean) / own_spread
        fine = (torch.cat([of_parts(each) for each in patches.split(BATCH)]) - mean) / spread
        own, fine, patches = (
            torch.stack([turned(each, code) for each, code in zip(batch, codes, strict=True)])
            for batch in (own, fine, patches)
        )
        n, side, _, values = own.shape
        within = fine.reshape(n, side, parts, side, parts, values).transpose(2, 3)
        with in_bf16(CPU):
            said, of_within = model(patches)
        loss = F.mse_loss(said.float(), own.flatten(1, 2))
        return loss + PARTS_WEIGHT * F.mse_loss(of_within.float(), within.reshape(n, side**2, -1))

    return step
