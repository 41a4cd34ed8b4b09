"""Dense teaching: each of a network's tokens learns what a teacher, a dictionary or an encoder, sees in its square.

A patch has one count per gene, but a token for each square of tissue. For each square the teacher gives a lesson, so
that 1,000 patches make 196,000 lessons. If the head reads a cls token, this token learns the mean lesson over the whole
patch. Dense teaching reads no counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpredict.arrays import Float, Int
from stpredict.console import Report
from stpredict.data.tiles import Tiles
from stpredict.networks.draws import draw
from stpredict.networks.m2ort import M2ORT
from stpredict.networks.m2ost import M2OST
from stpredict.networks.trunks.pixels import ImageNetPixels
from stpredict.networks.trunks.resnet import ResNet
from stpredict.prediction.on_device import turned
from stpredict.slides.symmetry import SYMMETRIES
from stpredict.slides.views import own_views
from stpredict.storage.files import atomic_path
from stpredict.training.fit import TAUGHT_LIMIT, Course, Step, fit
from stpredict.training.processes import in_bf16, is_main_process, wait_for_all
from stpredict.training.progress import Pace, in_lines
from stpredict.training.sampling import Stage, groups_to_balance
from stpredict.training.settings import teach_learning_rate
from stpredict.training.teachers import BATCH, Teacher

#: Networks whose tokens are squares of a patch.
HasTokens = M2ORT | M2OST
#: The file of lessons in the folder of a network's training, until the network is taught.
LESSONS = "lessons.npy"

#: How many rows of lessons are in memory at a time.
ROWS = 100_000
#: The weight of a lesson on the whole patch beside those on its tokens.
WHOLE_WEIGHT = 0.3


class TrunkTokens(nn.Module):
    """A trunk, the places of whose last map are tokens. Their mean is read."""

    head_reads_mean = True

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        self.pixels = ImageNetPixels()
        self.trunk = trunk

    def tokens(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, N x T x features, row by row, and their mean, of patches, uint8 N x P x P x 3."""
        tokens = self.trunk.tokens(self.pixels(patches))
        return tokens, tokens.mean(dim=1)


class DenselyTaught(nn.Module):
    """A network that predicts the teacher's lesson for each token; if its head reads a cls token, also for the patch.

    `read` predicts lessons from the features that the network's head reads: from a mean over tokens as from a token.
    """

    def __init__(self, network: HasTokens | TrunkTokens, token_width: int, width: int, values: int) -> None:
        super().__init__()
        self.network = network
        self.of_token = nn.Linear(token_width, values)
        self.of_whole = None if network.head_reads_mean else nn.Linear(width, values)

    @property
    def read(self) -> nn.Linear:
        return self.of_whole or self.of_token

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised lessons: for tokens N x T x values; for patches N x values, if the head reads a cls token."""
        tokens, features = self.network.tokens(patches)
        return self.of_token(tokens), self.of_whole(features) if self.of_whole else None


@dataclass(frozen=True)
class Lessons:
    """The teacher's lessons on unlabelled places, in half precision: places x side x side x values."""

    values: np.memmap
    places: Int  # indices among all unlabelled places, rising

    def of(self, items: Int) -> Tensor:
        """The lessons on some places, N x side x side x values."""
        return torch.from_numpy(np.asarray(self.values[np.searchsorted(self.places, items)], np.float32))

    def parts(self) -> Iterator[Float]:
        """Tokens x values, some at a time."""
        step = max(1, ROWS // int(np.prod(self.values.shape[1:3])))
        for start in range(0, len(self.values), step):
            yield np.asarray(self.values[start : start + step], np.float64).reshape(-1, self.values.shape[3])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each value over all tokens."""
        n = np.prod(self.values.shape[:3])
        mean = sum(part.sum(axis=0) for part in self.parts()) / n
        spread = np.sqrt(sum(((part - mean) ** 2).sum(axis=0) for part in self.parts()) / n)
        return torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(spread + 1e-6, dtype=torch.float32)

    def of_whole(self) -> Tensor:
        """The mean lesson over each patch, standardised over all patches: places x values."""
        parts = (np.asarray(self.values[i : i + BATCH], np.float32) for i in range(0, len(self.values), BATCH))
        means = np.concatenate([part.mean(axis=(1, 2)) for part in parts])
        scaled = (means - means.mean(axis=0)) / (means.std(axis=0) + 1e-6)
        return torch.as_tensor(np.clip(scaled, -TAUGHT_LIMIT, TAUGHT_LIMIT))


def write_lessons(
    teacher: Teacher, tiles: Tiles, places: Int, side: int, path: Path, device: torch.device, report: Report
) -> Lessons:  # fmt: skip
    """Have the teacher make lessons on the unlabelled `places`, and write them to `path`, whole or not at all."""
    if not path.exists() and is_main_process():
        teacher.network.to(device).eval()
        pace = Pace(-(-len(places) // BATCH), 0, 0)
        advance = in_lines(f"{path.parent.name}: the teacher's lessons", pace, report)
        with atomic_path(path) as temporary, torch.inference_mode():
            shape = (len(places), side, side, teacher.values)
            values = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for start in range(0, len(places), BATCH):
                patches = own_views(tiles.read_patches(places[start : start + BATCH], unlabelled=True), tiles.views)
                lessons = teacher.lessons(torch.from_numpy(patches).to(device), side)
                values[start : start + BATCH] = lessons.half().cpu().numpy()
                advance(len(lessons))
            values.flush()
        teacher.network.to("cpu")  # an encoder takes memory that the student needs
    wait_for_all()
    return Lessons(np.lib.format.open_memmap(path, "r"), places)


def teach_densely(network: HasTokens, teacher: Teacher, tiles: Tiles, places: Int, course: Course) -> nn.Linear:
    """Train a network on the `teacher`'s lessons on the unlabelled `places`; returns what predicts them of features."""
    network.head.requires_grad_(False)  # it is not used, and processes that share the work wait for all that is trained
    read = teach_tokens(network, teacher, tiles, places, course)
    network.head.requires_grad_(True)
    return read


def teach_tokens(
    network: HasTokens | TrunkTokens, teacher: Teacher, tiles: Tiles, places: Int, course: Course
) -> nn.Linear:
    """Train what makes a network's tokens, and return the layer that predicts lessons.

    Patches are turned at random while their lessons keep their channels, so the network learns the mean over all turns.
    """
    settings, device = course.settings, course.device
    network.to(device).eval()
    with torch.inference_mode():
        tokens, features = network.tokens(torch.from_numpy(tiles.read_patches(places[:1], unlabelled=True)).to(device))
    student = DenselyTaught(network, tokens.shape[2], features.shape[1], teacher.values)
    epochs = -(-settings.teach_patches // len(places))
    groups = groups_to_balance(tiles, settings.balance, tiles.unlabelled_section)
    stage = Stage("teach", places, epochs, teach_learning_rate(settings), varied=False, groups=groups)
    path, side = course.folder / LESSONS, round(tokens.shape[1] ** 0.5)
    # Only if lessons are left to learn.
    ask = cache(partial(write_lessons, teacher, tiles, places, side, path, device, course.log.report))
    read = partial(tiles.read_patches, unlabelled=True)
    for epoch, loss, seconds in fit(student, read, dense_step(ask, device), stage, course):
        course.log.add(stage.name, epoch, loss, seconds)
    if is_main_process():
        path.unlink(missing_ok=True)
    return student.read


def dense_step(ask: Callable[[], Lessons], device: torch.device) -> Step:
    """The loss of a batch of patches, each turned at random together with its lessons."""

    @cache
    def standards() -> tuple[Tensor, Tensor, Tensor]:
        return *ask().moments(), ask().of_whole()

    def step(model: nn.Module, patches: Tensor, items: Int) -> Tensor:
        lessons, (mean, spread, whole) = ask(), standards()
        codes = draw(lambda n: torch.randint(SYMMETRIES, (n,)), len(items)).tolist()
        wanted = (lessons.of(items) - mean) / spread
        wanted = torch.stack([turned(each, code) for each, code in zip(wanted, codes, strict=True)]).flatten(1, 2)
        patches = torch.stack([turned(each, code) for each, code in zip(patches, codes, strict=True)])
        with in_bf16(device):
            of_tokens, of_whole = model(patches)
        loss = F.mse_loss(of_tokens.float(), wanted.to(device))
        if of_whole is None:
            return loss
        of_patches = whole[np.searchsorted(lessons.places, items)].to(device)
        return loss + WHOLE_WEIGHT * F.mse_loss(of_whole.float(), of_patches)

    return step


def read_lessons(lessons: nn.Linear, features: Float) -> Float:
    """The lessons that the layer `lessons` predicts from features, patches x values."""
    with torch.inference_mode():
        read = lessons.cpu()(torch.as_tensor(features, dtype=torch.float32))
    return read.double().numpy()  # type: ignore[no-any-return]
