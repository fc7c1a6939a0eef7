"""What a model gives to the training loop: networks, phases, losses, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mixsyn_fast.region_map import Plan

from .judged import Judged

if TYPE_CHECKING:
    from ..data import Source, TrainingSet


@dataclass(frozen=True)
class Phase:
    """One optimiser's part of a step: which networks move, and how.

    Different learning rates of generator and discriminator are the two time-scale update rule (TTUR, Heusel et al. 2017).
    """

    networks: tuple[str, ...]  # names in Task.networks that this phase updates; the others see no gradient
    lr: float  # learning rate, before the schedule's factor
    betas: tuple[float, float] = (0.0, 0.9)  # decay rates of Adam's moments
    weight_decay: float = 0.0  # per step, as options say: L2 (adam) or decoupled (adamw)
    optimizer: Literal["adam", "adamw"] = "adam"
    every: int = 1  # period: it runs in steps start, start + every, ... (counted from 0); its batches are that step's
    shares: str = ""  # name of a phase of the same networks whose optimiser, moments included, this one steps; "": its own
    start: int = 0  # first step of the phase
    stop: int | None = None  # first step after its last; None: it never ends

    def __post_init__(self) -> None:
        """Check period and window."""
        if self.every < 1:
            raise ValueError(f"every: expected at least 1, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start: expected 0 or more, got {self.start}")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop: expected more than start {self.start}, or none, got {self.stop}")

    def on(self, step: int) -> bool:
        """Say whether a step, counted from 0, lies between the phase's first and last one."""
        return step >= self.start and (self.stop is None or step < self.stop)

    def due(self, step: int) -> bool:
        """Say whether the phase runs in a step, counted from 0: in its first one, so that what is wrong shows at once."""
        return self.on(step) and (step - self.start) % self.every == 0

    def finished(self, step: int) -> bool:
        """Say whether a step in which it ran was the phase's last one: its optimiser's moments are dropped then."""
        return self.stop is not None and step + self.every >= self.stop


T = TypeVar("T")


class Kept(Generic[T]):
    """What an earlier phase of a step leaves for a later one, by the batch's images; micro-batches lie side by side."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Tensor, T]] = []  # step, images, what was kept

    def __len__(self) -> int:
        return len(self.entries)

    def keep(self, step: int, images: Tensor, value: T) -> None:
        """Keep a value; those of other steps go."""
        self.entries = [*(entry for entry in self.entries if entry[0] == step), (step, images, value)]

    def take(self, images: Tensor) -> T | None:
        """Return what was kept last for these images, which goes, or None."""
        found = [value for _, key, value in self.entries if key is images]
        self.entries = [entry for entry in self.entries if entry[1] is not images]
        return found[-1] if found else None


class Task(ABC):
    """A model in training. The loop (`train`) owns steps, optimisers, averages, files and processes; a task owns the rest.

    A subclass fills the attributes in its constructor and always reaches its networks through `self.networks`, for the loop
    may replace their layers (synchronised statistics) and hands averaged copies to `generate`.
    """

    networks: dict[str, nn.Module]
    """Everything that a checkpoint holds. Fixed feature networks do not belong here."""
    averaged: tuple[str, ...]
    """Names of the networks of which the loop keeps an exponential moving average."""
    phases: dict[str, Phase]
    """Name -> phase, in the order in which a step runs them."""
    num_regions: int = 0
    """K of the region maps; 0 for a task that needs none, whose data set may be plain pictures or latent codes."""
    plans: tuple[Plan, ...] = ()
    """Every label analysis that the networks will ask for: made by the data workers."""
    classes: tuple[str, ...] = ()
    """Names of the K regions, for sheets; filled by the command."""
    compiles: bool = True
    """False: the networks are used otherwise than by their forward, so that compiling them would change nothing."""
    begins_with: tuple[str, ...] = ()
    """Names of networks that learn nothing here and on which the others rest: a run must get their weights (init_from)."""
    total_steps: int | None = None
    """Steps of a whole run, where the task knows them: the command trains no longer."""
    first_steps: Mapping[str, int] = MappingProxyType({})
    """Networks of later stages -> the step in which each begins to learn, in use as in training: of a run that ended earlier
    their weights are as drawn (`Trained.not_begun`)."""
    best: str = "psnr"
    """The figure of `validate` whose best checkpoint is kept (- before it: smaller is better); "": none."""
    best_from: int = 0
    """First step after which a checkpoint can be the best: that of the stage that makes the final model."""
    least_batch: int = 1
    """Pictures that every process needs in a micro-batch: fewer are refused before anything is written."""

    @abstractmethod
    def losses(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Return the weighted losses of a phase, scalars whose sum is minimised. Runs inside autocast.

        A batch is what the data set's `collate` makes: Batch, ImageBatch, LatentBatch ...
        """

    @abstractmethod
    def generate(self, batch: Any, networks: Mapping[str, nn.Module]) -> Tensor:
        """Return the images (B, 3, H, W) in [-1, 1] that `networks` (live or averaged) make of a batch."""

    def own_data(self, seed: int) -> tuple[TrainingSet, TrainingSet | None]:
        """Return what to learn from and what to validate on, of a task whose data are no pictures (`Trainable.own_data`)."""
        raise NotImplementedError(f"{type(self).__name__} learns from a data set of the user's")

    def to(self, device: torch.device) -> None:
        """Move the networks and whatever else the losses need."""
        for network in self.networks.values():
            network.to(device)

    def wanted(self, batch: Any) -> Tensor:
        """Return the images (B, 3, H, W) that `generate` is judged against: here the batch's own."""
        image: Tensor = batch.image
        return image

    def validate(self, batch: Any, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return figures of merit, (B,) each: here PSNR in dB, SSIM and L1 (range [-1, 1]) against `wanted`."""
        from ..metrics.pixels import psnr, ssim

        made, real = self.generate(batch, networks).float().clamp(-1, 1), self.wanted(batch)
        return {"psnr": psnr(made, real), "ssim": ssim(made, real), "l1": (made - real).abs().mean((1, 2, 3))}

    def judged(self, batch: Any, step: int) -> dict[str, Judged]:
        """Return what the discriminators at work in a step say of a batch, and teach, by prefix ("": the only one).

        The loop logs it (`judged.figures_of`) in the first step of every phase and every Options.validate_every steps, with
        networks in eval mode.
        """
        return {}

    def sheet(self, batch: Any, networks: Mapping[str, nn.Module]) -> list[list[np.ndarray]]:
        """Return rows of pictures (H, W, 3) uint8 for a sample sheet: image, label map, as far as there are, generated."""
        from ..data import Batch, ImageBatch, colorize
        from ..sheets import to_uint8

        columns: list[Any] = [to_uint8(self.generate(batch, networks))]
        if isinstance(batch, Batch):
            columns.insert(0, [colorize(each, self.num_regions) for each in batch.regions.labels_at().cpu().numpy()])
        if isinstance(batch, (Batch, ImageBatch)):
            columns.insert(0, to_uint8(batch.image))
        return [list(row) for row in zip(*columns, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return whatever else, as JSON, makes a resumed run continue exactly."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most tasks have nothing to take back
        """Take back what `state` returned."""


@dataclass(frozen=True)
class Trainable:
    """How a command comes from options to a task. `mixsyn-fast train <name>` looks these up by name."""

    config: type
    """Dataclass of the model's own options: networks, weights of losses, learning rates."""
    fitted: Callable[[Any, Sequence[str], tuple[int, int], bool], Any]
    """(config, classes, size, edges) -> config with what the data decides: regions, image size, instance edges."""
    build: Callable[[Any, bool], Task]
    """(fitted config, training) -> task; without training only what `generate` needs (no feature networks for losses)."""
    decided: tuple[str, ...] = ()
    """Dotted names of the config's fields that `fitted` sets from the data: they are no options of the command."""
    needs_regions: bool = True
    """False: it trains on plain pictures (kind images) as well."""
    own_data: bool = False
    """True: the task makes its data sets itself (`Task.own_data`), and the command has no options about data."""

    def check(self, name: str, source: Source) -> None:
        """Raise ValueError when model `name` needs label maps and the data set has none."""
        if self.needs_regions and not source.classes:
            raise ValueError(
                f"kind: expected a data set with label maps, which {name} learns from, got {source.name}, without"
            )
