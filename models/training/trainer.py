"""One step of training, and the state that goes from step to step."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoints import load_checked
from ..data import Loader, TrainingSet
from . import checkpoint, distributed, packing
from .distributed import World
from .ema import EMA
from .initial import Weights, classes_of, other_classes
from .judged import figures_of
from .options import Options
from .task import Phase, Task

_REFUSALS = ("double backward", "create_graph=False")  # torch.compile's words where it has no second derivative
_LOOK = 8  # pictures at a time in validation and sheets: the same for any number of processes, so that figures are, too


class PhaseModule(nn.Module):
    """Phases of a task as a module: its parameters are those the phases train, its forward is the losses of one of them.

    One forward per backward is what DistributedDataParallel asks for, whatever the losses do inside.
    """

    def __init__(self, task: Task, networks: Iterable[str]) -> None:
        super().__init__()
        self.task = task
        self.trained = nn.ModuleDict({name: task.networks[name] for name in networks})

    def forward(self, phase: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Return a phase's losses."""
        return self.task.losses(phase, batch, step)


def groups(phases: Mapping[str, Phase]) -> list[tuple[set[str], set[str]]]:
    """Return (phases, networks) of modules without a common network: a parameter reports to one distributed module alone."""
    found: list[tuple[set[str], set[str]]] = []
    for name, phase in phases.items():
        joined = [group for group in found if group[1] & set(phase.networks)]
        found = [group for group in found if group not in joined]
        found.append(({name}.union(*(p for p, _ in joined)), set(phase.networks).union(*(n for _, n in joined))))
    return found


def make_optimizer(phase: Phase, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the phase's optimiser; torch's fused kernels, one pass over the parameters, where all are floats."""
    kind = torch.optim.AdamW if phase.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=phase.lr, betas=phase.betas, weight_decay=phase.weight_decay, fused=True)


class Trainer:
    """Everything of a run that has state: networks, optimisers, scalers, averages, data position."""

    def __init__(self, task: Task, options: Options, dataset: TrainingSet, world: World) -> None:
        check(task, dataset)
        self.task, self.options, self.world = task, options, world
        self.step = 0
        self.ran: list[str] = []  # phases of the last step
        self.best: float | None = None
        self.init_from = ""  # where the first weights of the run came from; "": drawn at random
        task.to(world.device)
        if options.channels_last:
            for network in task.networks.values():
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.compile and not task.compiles:
            raise ValueError(f"compile: {type(task).__name__} calls parts of its networks, which compiling does not reach")
        if options.compile:
            for network in task.networks.values():
                network.compile()
        averaged = {name: task.networks[name] for name in task.averaged}
        self.ema = EMA(averaged, options.ema_decay) if options.ema_decay else None
        # a parameter that the task froze for good stays frozen
        self.movable = {
            name: [p for p in network.parameters() if p.requires_grad] for name, network in task.networks.items()
        }
        for network in task.networks.values():
            network.train()
        self.parameters = {
            name: [p for network in phase.networks for p in self.movable[network]] for name, phase in task.phases.items()
        }
        self._begins = {
            name: min((phase.start for phase in task.phases.values() if name in phase.networks), default=0)
            for name in task.averaged
        }
        owners = {name: phase for name, phase in task.phases.items() if not phase.shares}
        self.optimizers = {name: make_optimizer(phase, self.parameters[name]) for name, phase in owners.items()}
        # one scale per phase: the gradients of generator and discriminator differ by orders of magnitude
        self.scalers = {name: torch.amp.GradScaler(world.device.type, enabled=options.amp == "fp16") for name in task.phases}
        self.modules: dict[str, nn.Module] = {}
        for phases, networks in groups(task.phases):
            module: nn.Module = PhaseModule(task, sorted(networks))
            if world.size > 1:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renamed broadcast_buffers, 2.11 has it
                    module = DistributedDataParallel(
                        module,
                        device_ids=[world.device] if world.device.type == "cuda" else None,
                        find_unused_parameters=True,  # layers of a region that is absent from the batch have no gradient
                        broadcast_buffers=False,  # statistics are synchronised, spectral norms follow the weights
                    )
            self.modules |= dict.fromkeys(phases, module)
        if world.size > 1:
            # after that: DistributedDataParallel refuses, by type, synchronised statistics on a CPU
            for network in task.networks.values():
                synchronise_statistics(network, world.device)
        self.loader = Loader(
            dataset,
            options.batch_size // options.accumulate,
            workers=options.workers,
            rank=world.rank,
            world=world.size,
            seed=options.seed,
            drop_last=options.drop_last,
            plans=task.plans if options.plan != "dense" else (),
            device=world.device,
        )

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks to look at: averaged where there is an average."""
        return self.task.networks | (self.ema.networks if self.ema else {})

    # --- one step -------------------------------------------------------------------------------------------------------

    def run_phase(self, name: str, batches: list[Any]) -> dict[str, Tensor]:
        """Run one phase of a step: losses and gradients of all micro-batches, clipping, one optimiser step.

        Returns:
            The losses, averaged over micro-batches, and the gradient's 2-norm before clipping where it is clipped; on the
            device.
        """
        phase, options, world = self.task.phases[name], self.options, self.world
        for network, parameters in self.movable.items():
            for parameter in parameters:
                parameter.requires_grad_(network in phase.networks)
        optimizer, scaler, module = self.optimizers[phase.shares or name], self.scalers[name], self.modules[name]
        optimizer.zero_grad()
        found: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            waits = isinstance(module, DistributedDataParallel) and i + 1 < len(batches)
            with module.no_sync() if waits else contextlib.nullcontext(), self._second_derivatives_said(name):  # type: ignore[operator]
                with autocast(options.amp, world.device):
                    losses = module(name, batch, self.step)
                total = torch.stack([loss.float() for loss in losses.values()]).sum() / len(batches)
                scaler.scale(total).backward()
            for key, loss in losses.items():
                found[key] = found.get(key, 0) + loss.detach().float() / len(batches)
        scaler.unscale_(optimizer)
        if options.clip_norm:
            found["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters[name], options.clip_norm)
        factor = options.schedule.factor(self.step, options.steps)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * factor
        scaler.step(optimizer)
        scaler.update()
        if phase.finished(self.step):
            optimizer.zero_grad()
            optimizer.state.clear()
        return found

    @contextlib.contextmanager
    def _second_derivatives_said(self, phase: str) -> Iterator[None]:
        """Say which option to change where this torch's compiler refuses what R1 and its like need (2.14 does)."""
        try:
            yield
        except RuntimeError as error:
            if not self.options.compile or not any(words in str(error) for words in _REFUSALS):
                raise
            raise ValueError(
                f"compile: torch {torch.__version__} compiles no second derivatives, and phase {phase!r} takes them (R1, "
                "say): train with --no-compile, or with another torch (2.13 does)"
            ) from error

    def run_step(self) -> dict[str, Tensor]:
        """Run the phases that are due on the next batches; return their losses, named <phase>/<loss>."""
        options = self.options
        batches, waited = [], 0.0
        for _ in range(options.accumulate):
            batches.append(next(self.loader))
            waited += self.loader.data_seconds
        # after the data: opening the workers, which a resumed run does anew, draws random numbers
        distributed.seed_step(options.seed, self.world.rank, self.step)
        scalars: dict[str, Tensor] = {}
        self.ran = [name for name, phase in self.task.phases.items() if phase.due(self.step)]
        for name in self.ran:
            scalars |= {f"{name}/{key}": loss for key, loss in self.run_phase(name, batches).items()}
        if self.ema:
            self.ema.update(self.step, self._begins)
            self.ema.settle(self._ended())
        self.step += 1
        self.waited, self.skipped = waited, [name for batch in batches for name in batch.skipped]
        return scalars

    def _ended(self) -> set[str]:
        """Averaged networks whose last phase ended with this step: what rests on them is to learn from what will be used."""
        phases = self.task.phases.values()
        done = {name for phase in self.ran for name in self.task.phases[phase].networks if name in self.task.averaged}
        on = {name for phase in phases if phase.stop is None or phase.stop > self.step + 1 for name in phase.networks}
        return done - on

    def rates(self, phases: Collection[str]) -> dict[str, float]:
        """Return the learning rate of some phases in their last step, and their loss scale where there is one."""
        names = [name for name in self.optimizers if name in phases]
        found = {f"lr/{name}": self.optimizers[name].param_groups[0]["lr"] for name in names}
        return found | {f"loss_scale/{n}": self.scalers[n].get_scale() for n in names if self.scalers[n].is_enabled()}

    @property
    def begun(self) -> bool:
        """Whether a phase had its first step in the last one."""
        return any(self.task.phases[name].start == self.step - 1 for name in self.ran)

    # --- state ----------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return tensors by group and the JSON part of a checkpoint."""
        tensors = {f"network.{name}": dict(network.state_dict()) for name, network in self.task.networks.items()}
        state: dict[str, Any] = {
            "step": self.step,
            "best": self.best,
            "loader": self.loader.state_dict(),
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "task": self.task.state(),
            "optimizers": {},
            "classes": list(self.task.classes),
            "init_from": self.init_from,
        }
        for name, optimizer in self.optimizers.items():
            tensors[f"optimizer.{name}"], state["optimizers"][name] = packing.pack_optimizer(optimizer.state_dict())
        if self.ema:
            tensors["average"] = self.ema.state_dict()
        tensors["random"], state["random"] = packing.rng_state()
        return tensors, state

    def load(self, saved: checkpoint.Checkpoint) -> list[str]:
        """Take everything back from a checkpoint.

        Learning rates, betas and weight decay are those of the task, which may have changed since. So may pictures, batch
        size and seed: the data order then begins anew (:data:`mixsyn_fast.models.data.loader.ORDER`).

        Returns:
            Notes for the user.

        Raises:
            ValueError: the checkpoint is of other networks, phases or classes, or of a run that began otherwise than
                Options.init_from says; the message names its folder.
        """
        state, notes = saved.state, [f"resumed from {saved.path}"]
        began = state.get("init_from", "")
        if self.options.init_from not in ("", began):
            raise ValueError(
                f"init_from: expected {began or 'none'}, from which the run of {saved.path} began, got "
                f"{self.options.init_from}: choose another --out, or go on without init_from"
            )
        renamed = other_classes(classes_of(saved), self.task.classes, saved.path)
        if renamed and not self.options.rename_classes:
            raise ValueError(
                f"{saved.path}: its classes have other names ({renamed}): go on under the new names with "
                "rename_classes=True; if they are other classes, choose another --out"
            )
        notes += [f"classes renamed: {renamed}"] if renamed else []
        try:
            for name, network in self.task.networks.items():
                network.load_state_dict(saved.tensors(f"network.{name}"))
            for name, optimizer in self.optimizers.items():
                packed = saved.tensors(f"optimizer.{name}"), state["optimizers"][name]
                restore_optimizer(optimizer, packing.unpack_optimizer(*packed))
            for name, scaler in self.scalers.items():
                if scaler.is_enabled() and state["scalers"][name]:
                    scaler.load_state_dict(state["scalers"][name])
            changes = self.loader.load_state_dict(state["loader"])
            self.task.load_state(state["task"])
            if self.ema and "average" in saved.groups:
                self.ema.load_state_dict(saved.tensors("average"))
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{saved.path}: does not fit this model or its data (choose another --out, or --resume no): {error}"
            ) from error
        if self.ema and "average" not in saved.groups:
            self.ema = EMA({name: self.task.networks[name] for name in self.task.averaged}, self.options.ema_decay)
            notes.append("the checkpoint has no averaged weights: the average begins with the weights as they are")
        if changes:
            notes.append(f"the data order begins anew: {', '.join(changes)}")
        packing.set_rng_state(saved.tensors("random"), state["random"])
        self.step, self.best, self.init_from = state["step"], state["best"], began
        return notes

    def begin_with(self, weights: Weights) -> list[str]:
        """Take weights alone: optimisers, step, data order and random numbers are those of a new run.

        Returns:
            Notes for the user.

        Raises:
            ValueError: they do not fit the networks.
        """
        for name, state in weights.networks.items():
            load_checked(self.task.networks[name], state, source=f"init_from: {weights.path} ({name})")
        if self.ema:
            self.ema = EMA({name: self.task.networks[name] for name in self.task.averaged}, self.options.ema_decay)
        self.init_from = self.options.init_from
        said = [f"{name} (averaged)" if name in weights.averaged else name for name in weights.networks]
        notes = [f"begins with the weights of {weights.path}: {', '.join(said)}"]
        fresh = [name for name in self.task.networks if name not in weights.networks]
        notes += [f"not there, begun with random weights: {', '.join(fresh)}"] if fresh else []
        if weights.classes and self.task.classes and len(weights.classes) == len(self.task.classes):
            renamed = other_classes(weights.classes, self.task.classes, weights.path)
            notes += [f"its classes had other names: {renamed}"] if renamed else []
        return notes

    def save(self, folder: Path, *, best: bool = False) -> Path:
        """Write a checkpoint (process 0 alone) and return its folder."""
        tensors, state = self.state()
        return checkpoint.save_checkpoint(folder, self.step, tensors, state, keep_last=self.options.keep_last, best=best)

    def is_best(self, figures: Mapping[str, float]) -> bool:
        """Say whether a validation is the best so far, by Options.best."""
        wanted = self.task.best if self.options.best == "auto" else self.options.best
        if not wanted:
            return False
        name = wanted.removeprefix("-")
        if name not in figures:
            raise ValueError(f"best: expected one of {', '.join(figures)} (- before it: smaller is better), got {name!r}")
        value = -figures[name] if wanted.startswith("-") else figures[name]
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def close(self) -> None:
        """Stop the data workers."""
        self.loader.close()

    def bytes_to_save(self) -> int:
        """Return the size of one checkpoint: weights, averages and two moments of what is trained."""
        weights = sum(t.nbytes for network in self.task.networks.values() for t in network.state_dict().values())
        averages = sum(t.nbytes for t in self.ema.state_dict().values()) if self.ema else 0
        moments = 2 * sum(p.nbytes for name in self.optimizers for p in self.parameters[name])
        return int(weights + averages + moments)

    # --- looking at it --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, dataset: TrainingSet) -> dict[str, float]:
        """Return the task's figures of merit, means over the first images of the validation set.

        Every process must call it: each judges its batches, and the first one gets the figures, the others an empty dict.
        All values are added in float64 and rounded once, so that figures do not depend on the number of processes.
        """
        found: dict[str, list[float]] = {}
        for batch in self.look(dataset, self.options.validate_images, self.world):
            for name, value in self.task.validate(batch, self.networks()).items():
                found.setdefault(name, []).extend(value.double().tolist())
        parts = distributed.gather(found)
        every = {name: [value for part in parts for value in part.get(name, ())] for part in parts for name in part}
        return {name: math.fsum(values) / len(values) for name, values in every.items()}

    def judged(self, dataset: TrainingSet) -> dict[str, float]:
        """Return whether the discriminators of the last step teach (`judged.figures_of`), by a set's first pictures.

        One process alone may call it.
        """
        batches = self.look(dataset, _LOOK, World(0, 1, 0, self.world.device))
        return figures_of(self.task.judged(batch, self.step - 1) for batch in batches)

    @torch.no_grad()
    def sheet(self, dataset: TrainingSet) -> list[list[Any]]:
        """Return the rows of a sample sheet."""
        batches = self.look(dataset, self.options.sheet_images, World(0, 1, 0, self.world.device))
        return [row for batch in batches for row in self.task.sheet(batch, self.networks())]

    def look(self, dataset: TrainingSet, count: int, world: World) -> Iterator[Any]:
        """Yield this process's batches of the first `count` items (0: all), networks in eval mode, noise as every time.

        Batch n comes to process n mod size, so batches and noise are the same for any number of processes.
        """
        count = min(count or len(dataset), len(dataset))
        size = min(count, _LOOK, self.options.batch_size // self.options.accumulate)
        for network in self.task.networks.values():
            network.eval()
        loader = Loader(
            dataset,
            size * world.size,
            rank=world.rank,
            world=world.size,
            shuffle=False,
            drop_last=False,
            device=world.device,
        )
        try:
            for place, batch in enumerate(loader.once(count)):
                distributed.seed_step(self.options.seed, place * world.size + world.rank, -1)
                yield batch
        finally:
            loader.close()
            for network in self.task.networks.values():
                network.train()


def check(task: Task, dataset: TrainingSet) -> None:
    """Raise ValueError when a task has no phase in some steps, or asks for region maps that a data set does not have."""
    reached: float = 0  # every step before this one has a phase
    for phase in sorted((p for p in task.phases.values() if p.every == 1), key=lambda p: p.start):
        if phase.start <= reached:
            reached = max(reached, math.inf if phase.stop is None else phase.stop)
    if reached < (math.inf if task.total_steps is None else task.total_steps):
        raise ValueError(
            f"phases: expected one that runs in every step, got {', '.join(task.phases)}, none in step {reached}"
        )
    for name, phase in task.phases.items():
        owner = task.phases.get(phase.shares)
        if phase.shares and (owner is None or owner.shares or owner.networks != phase.networks):
            networks = ", ".join(phase.networks)
            raise ValueError(
                f"phases: expected an optimiser of {networks} for {name} to share, got that of {phase.shares!r}"
            )
    if task.num_regions and task.num_regions != dataset.num_regions:
        got = f"{dataset.num_regions}" if dataset.num_regions else "none"
        raise ValueError(f"dataset: expected label maps of {task.num_regions} regions, got {got} (kind {dataset.kind})")


def synchronise_statistics(network: nn.Module, device: torch.device) -> None:
    """Take batch statistics over all processes, as one process with the whole batch would.

    On a GPU every batch norm becomes an nn.SyncBatchNorm. On a CPU torch has none; there the region-adaptive layers
    synchronise theirs, and any other batch norm raises ValueError, for its result would depend on the number of processes.
    """
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                continue
            if device.type == "cpu" and name != "param_free_norm":
                raise ValueError(
                    f"device: expected a GPU for synchronised statistics of {type(parent).__name__}.{name}, got cpu"
                )
            setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's moments; its settings stay what they are now."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, now in zip(optimizer.param_groups, settings, strict=True):
        group.update(now)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:  # files are contiguous, the fused kernels want the weight's layout
                moments[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of Options.amp."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"fp16": torch.float16, "bf16": torch.bfloat16}[amp])
