"""Batches in an order that any number of processes and workers agrees on, and that a resumed run goes on with exactly.

Epoch e is the permutation drawn from (seed, e), or, where pictures have chances, as many draws, every picture as often as
its chance says, rounded up or down at random, also from (seed, e); each draw is then cropped and flipped anew. Batch n of
all processes together is a slice of the epochs' concatenation; every process takes its contiguous part of it. Where
pictures, chances, batch size or seed have changed at a resume, the order begins anew.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mixsyn_fast.region_map import Plan, RegionMap

from .dataset import TrainingSet
from .source import fingerprint

_SECONDS_AFTER_SIGTERM = 60
Keys = list[tuple[int, int]]
"""(epoch, index) of every item of a batch."""
ORDER: dict[str, Callable[[Any, Any], str]] = {
    "length": "{} -> {} pictures".format,
    "pictures": lambda before, now: "other pictures",
    "batch_size": "batches of {} -> {} pictures".format,
    "seed": "seed {} -> {}".format,
    "drop_last": "drop_last {} -> {}".format,
    "chances": lambda before, now: "pictures are drawn with other chances",
}
"""What the order is made from: name in a loader's state -> words for a change of it."""


@dataclass(frozen=True)
class Order:
    """Which pictures come in which batch. Apart from the loader, so that an iterator does not keep its loader alive."""

    length: int
    batch_size: int
    rank: int
    world: int
    seed: int
    shuffle: bool
    drop_last: bool
    chances: np.ndarray | None = None
    first_epoch: int = 0  # number of the first epoch: after a resume with another order, one that was not begun before

    @property
    def used(self) -> int:
        """Pictures that an epoch gives."""
        return self.length // self.batch_size * self.batch_size if self.drop_last else self.length

    def epoch(self, number: int) -> np.ndarray:
        """Indices in the order of an epoch."""
        if not self.shuffle:
            return np.arange(self.length)
        rng = np.random.default_rng([self.seed, number])
        if self.chances is None:
            return rng.permutation(self.length)
        # systematic sampling: points one apart along the chances, laid end to end; fewer repeats than independent draws
        ends = np.cumsum(self.chances)
        ends *= self.length / ends[-1]
        ends[np.flatnonzero(self.chances)[-1] :] = np.inf
        return rng.permutation(np.searchsorted(ends, np.arange(self.length) + rng.random(), side="right"))

    def keys_from(self, batch: int) -> Iterator[Keys]:
        """Keys of this process, of batch number `batch` and of all after it, without end."""
        share = self.batch_size // self.world
        epochs: dict[int, np.ndarray] = {}
        while True:
            start = batch * self.batch_size + self.rank * share
            keys = []
            for position in range(start, start + share):
                number, within = divmod(position, self.used)
                number += self.first_epoch
                if number not in epochs:
                    epochs = {number: self.epoch(number)}
                # a picture that an epoch has twice is cropped and flipped anew: every draw has a number of its own
                crop = number if self.chances is None else number * self.length + within
                keys.append((crop, int(epochs[number][within])))
            yield keys
            batch += 1

    def keys_once(self, count: int) -> Iterator[Keys]:
        """Keys of this process's batches of one pass in order over the first `count` items."""
        share = self.batch_size // self.world
        for start in range(self.rank * share, count, self.batch_size):
            yield [(0, index) for index in range(start, min(start + share, count))]


def _told(batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """Iterate; a worker that dies while it hands a batch over is an error that says so, not one of a connection."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:
            if workers == 0 or str(error).startswith("Caught"):  # of the data, here or in a worker
                raise
            time.sleep(1)  # torch's own handler of the child's death, if it comes, raises its own error here
            raise RuntimeError("DataLoader worker exited unexpectedly while it handed over a batch") from error
        yield batch


class Loader:
    """Endless batches for training (`next(loader)`), and one pass in order for validation (:meth:`once`).

    Args:
        dataset: the items, and how they become a batch.
        batch_size: of all processes together.
        workers: worker processes; 0 reads in this process. They run one thread each.
        rank: number of this process, 0 to world - 1.
        world: number of processes.
        seed: of the order.
        plans: label analyses that are made with every batch.
        shuffle: False keeps the order 0, 1, 2 ... in every epoch.
        drop_last: True leaves out the pictures of an epoch that do not fill a batch (others in every epoch); False fills the
            batch from the next epoch. All batches are full.
        device: a CUDA device gets pinned, asynchronous copies, one batch ahead on a stream of its own; None, CPU: none.

    Raises:
        ValueError: an argument out of its range, a batch that does not divide by `world`, fewer pictures than a batch with
            `drop_last`. From `next`: a bad file with on_error="raise". RuntimeError from `next`: a worker died.

    :attr:`data_seconds` is how long the last `next` took: what the training process waited for data.
    """

    def __init__(
        self,
        dataset: TrainingSet,
        batch_size: int,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        plans: Sequence[Plan] = (),
        shuffle: bool = True,
        drop_last: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if workers < 0 or world < 1 or not 0 <= rank < world:
            raise ValueError(f"workers, rank, world: expected 0 or more, and rank < world, got {workers}, {rank}, {world}")
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"batch_size: expected a positive multiple of the {world} processes, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        if drop_last and len(dataset) < batch_size:
            raise ValueError(
                f"batch_size: expected at most the {len(dataset)} pictures there are (or drop_last=False), got {batch_size}"
            )
        self.dataset, self.workers = dataset, workers
        chances = dataset.chances if shuffle else None
        self.order = Order(len(dataset), batch_size, rank, world, seed, shuffle, drop_last, chances)
        self.device = None if device is None else torch.device(device)
        self.data_seconds = 0.0
        self.plans, self._collate = tuple(plans), dataset.collate(plans)
        self._drawn = 0
        self._batches: Iterator[Any] | None = None

    @property
    def batches_per_epoch(self) -> float:
        """Batches that an epoch gives; not a whole number with drop_last=False."""
        return self.order.used / self.order.batch_size

    # --- batches ------------------------------------------------------------------------------------------------------

    def _open(self, keys: Iterator[Keys]) -> Iterator[Any]:
        if self.plans and self.dataset.num_regions:  # load (or compile) the kernels here, once, rather than in every worker
            RegionMap(torch.zeros(1, 4, 4, dtype=torch.int32), 1).plan()
        on_cuda = self.device is not None and self.device.type == "cuda"
        batches = iter(
            DataLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_sampler=keys,
                num_workers=self.workers,
                collate_fn=self._collate,
                pin_memory=on_cuda,
                worker_init_fn=_begin_worker,
            )
        )
        return _CopiedAhead(batches, self.device) if on_cuda else batches  # type: ignore[arg-type]

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Any:
        """Return the next batch, as the data set collates it, waiting for it if it is not there yet."""
        began = time.perf_counter()
        if self._batches is None:
            self._batches = self._open(self.order.keys_from(self._drawn))
        try:
            batch = next(_told(self._batches, self.workers))
        except BaseException:
            self.close()  # so that another `next` begins anew at the same batch
            raise
        self._drawn += 1
        self.dataset.announce(list(zip(batch.skipped, batch.reasons, strict=True)))
        self.data_seconds = time.perf_counter() - began
        return batch

    def once(self, count: int | None = None) -> Iterator[Any]:
        """Iterate over this process's part of the first `count` items (None: all) in order, epoch 0.

        Batches hold `batch_size / world` items, the last one what is left, and batch n comes to process n mod `world`: no
        item comes twice, and other numbers of processes get the same batches as long as `batch_size / world` is the same.
        Some processes may get fewer batches than others, or none. The training order is not touched.
        """
        length = self.order.length
        batches = self._open(self.order.keys_once(length if count is None else min(count, length)))
        for batch in _told(batches, self.workers):
            self.dataset.announce(list(zip(batch.skipped, batch.reasons, strict=True)))
            yield batch

    def close(self) -> None:
        """End the workers. The next `next` starts new ones and continues where this one stopped."""
        self._batches = None  # the iterator ends its workers when it goes

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, as JSON: batches drawn so far (not those that workers hold ready), and of what."""
        order = {name: getattr(self.order, name) for name in ("seed", "batch_size", "length", "drop_last", "first_epoch")}
        return {**order, "batches": self._drawn, "pictures": self._pictures, "chances": self._chances}

    @property
    def _chances(self) -> str | None:
        chances = self.order.chances
        return None if chances is None else hashlib.sha256(chances.tobytes()).hexdigest()[:16]

    @cached_property
    def _pictures(self) -> str | None:
        """What tells a set of pictures from another of the same length: a hash of their names, where it has names."""
        names = getattr(getattr(self.dataset, "source", None), "names", None)
        return None if names is None else fingerprint(names())

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Continue at the batch after the last one that was drawn; the number of workers and processes may differ.

        Where the order cannot go on, because what it is made from has changed (:data:`ORDER`), it begins anew, with an epoch
        that was not begun before: crops and flips are other ones.

        Returns:
            What has changed; empty where the order goes on.

        Raises:
            ValueError: entries are missing.
        """
        mine = self.state_dict()
        missing = [key for key in ("seed", "batches", "batch_size", "length") if key not in state]
        if missing:
            raise ValueError(f"state: expected {', '.join(mine)}, got none of {', '.join(missing)}")
        # checkpoints of earlier versions lack the other entries: as they were then
        state = {"drop_last": True, "first_epoch": 0, "pictures": mine["pictures"], "chances": None, **state}
        changed = [key for key in ORDER if state[key] != mine[key]]
        if "length" in changed and "pictures" in changed:  # more of them are others as well
            changed.remove("pictures")
        before = replace(self.order, **{key: state[key] for key in ("batch_size", "length", "drop_last", "first_epoch")})
        begun = math.ceil(state["batches"] * before.batch_size / before.used) if changed else 0
        self.close()
        self.order = replace(self.order, first_epoch=before.first_epoch + begun)
        self._drawn = 0 if changed else int(state["batches"])
        return [ORDER[key](state[key], mine[key]) for key in changed]


def _begin_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group (Ctrl-C, `timeout`, a batch system) is the training process' to answer: it finishes
    # its step, for which it may need the workers, saves, and ends them. A worker that nobody ends goes a minute later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_AFTER_SIGTERM))


class _CopiedAhead:
    """Copy batches to a CUDA device on a stream of its own, one ahead of the one in use."""

    def __init__(self, batches: Iterator[Any], device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.stream = torch.cuda.Stream(device)
        self.ahead: Any = None
        self.started = False

    def __iter__(self) -> _CopiedAhead:
        return self

    def _fetch(self) -> Any:
        batch = next(self.batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(self.stream):
            return batch.to(self.device, non_blocking=True)

    def __next__(self) -> Any:
        if not self.started:
            self.started, self.ahead = True, self._fetch()
        batch = self.ahead
        if batch is None:
            raise StopIteration
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        batch.record_stream(current)
        self.ahead = self._fetch()
        return batch
