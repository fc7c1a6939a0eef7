"""The order of batches: over epochs, processes, workers and resumes; workers that die; bad files on the way."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixsyn_fast.models.data import Batch, Loader, RegionDataset, Sample
from mixsyn_fast.models.data.loader import _CopiedAhead

from mixsyn_fast.region_map import Plan

PLANS = (Plan((8, 8), "shared"), Plan((4, 4), "image"), Plan((4, 4), "classes"))


class Numbers:
    """Picture i is filled with i; its label map depends on i."""

    name = "numbers"
    classes = ("a", "b")
    swaps = ()
    default_size = (8, 8)

    def __init__(self, count: int, bad: Sequence[int] = (), deadly: int = -1, slow: float = 0.0) -> None:
        self.count, self.bad, self.deadly, self.slow = count, bad, deadly, slow

    def __len__(self) -> int:
        return self.count

    def names(self) -> list[str]:
        return [f"n{i}" for i in range(self.count)]

    def read(self, index: int) -> Sample:
        time.sleep(self.slow)
        if index == self.deadly and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.bad:
            raise ValueError(f"n{index}.png: broken")
        labels = (np.arange(8 * 16).reshape(8, 16) // (index + 1) % 2).astype(np.int32)
        return Sample(np.full((8, 16, 3), index, np.uint8), labels, None, f"n{index}")


def dataset(count: int = 10, **options: Any) -> RegionDataset:
    return RegionDataset(Numbers(count, **options), 8, crop="random", flip=0.5, seed=5)


def indices(loader: Loader, batches: int) -> list[list[int]]:
    return [next(loader).index.tolist() for _ in range(batches)]


def same(a: Batch, b: Batch) -> None:
    assert a.names == b.names and torch.equal(a.image, b.image) and torch.equal(a.index, b.index)
    assert torch.equal(a.regions.labels, b.regions.labels)  # type: ignore[arg-type]
    for key in (("plan", (8, 8), False), ("plan", (4, 4), True), ("class_plan", (4, 4))):
        assert all(torch.equal(u, v) for u, v in zip(a.regions._cache[key], b.regions._cache[key], strict=True))


def test_epochs_are_permutations() -> None:
    drawn = indices(Loader(dataset(10), 5, seed=1), 8)
    epochs = [sum(drawn[2 * e : 2 * e + 2], []) for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(e) for e in epochs}) == 4
    assert indices(Loader(dataset(10), 5, seed=1), 8) == drawn
    assert indices(Loader(dataset(10), 5, seed=2), 2) != drawn[:2]


def test_drop_last() -> None:
    loader = Loader(dataset(10), 4, seed=1)
    drawn = indices(loader, 40)
    assert all(len(set(drawn[n] + drawn[n + 1])) == 8 for n in range(0, 40, 2)) and loader.batches_per_epoch == 2
    counts = Counter(sum(drawn, []))
    assert set(counts) == set(range(10))  # what is left out changes
    whole = Loader(dataset(10), 4, seed=1, drop_last=False)
    drawn = sum(indices(whole, 5), [])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and whole.batches_per_epoch == 2.5
    few = Loader(dataset(3), 8, drop_last=False)
    assert [len(b) for b in indices(few, 3)] == [8, 8, 8]


def test_without_shuffling() -> None:
    assert indices(Loader(dataset(6), 3, shuffle=False), 3) == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(world: int, drop_last: bool) -> None:
    options: dict[str, Any] = {"seed": 3, "plans": PLANS, "drop_last": drop_last}
    alone = Loader(dataset(22), 8, **options)
    ranks = [Loader(dataset(22), 8, rank=r, world=world, **options) for r in range(world)]
    for _ in range(7):
        whole, parts = next(alone), [next(loader) for loader in ranks]
        assert all(len(part) == 8 // world for part in parts)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.image for part in parts]), whole.image)  # crops and flips too
        assert torch.equal(torch.cat([part.regions.labels for part in parts]), whole.regions.labels)  # type: ignore[arg-type,misc]


def test_workers_change_nothing() -> None:
    loaders = [Loader(dataset(10), 4, seed=1, workers=w, plans=PLANS) for w in (0, 1, 2)]
    for _ in range(6):
        first, *others = [next(loader) for loader in loaders]
        for other in others:
            same(first, other)
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_exactly(workers: int) -> None:
    straight = Loader(dataset(10), 4, seed=1, plans=PLANS)
    expected = [next(straight) for _ in range(9)]
    first = Loader(dataset(10), 4, seed=1, workers=workers, plans=PLANS)
    for n in range(5):
        same(next(first), expected[n])
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["seed"], state["batches"], state["batch_size"], state["length"]) == (1, 5, 4, 10)  # not what waits ready
    first.close()
    second = Loader(dataset(10), 4, seed=1, workers=2 - workers, plans=PLANS)
    next(second)
    assert second.load_state_dict(state) == []
    for n in range(5, 9):
        same(next(second), expected[n])
    second.close()
    same(next(first), expected[5])  # closing is no end
    first.close()


def keys(loader: Loader, batches: int) -> list[tuple[int, int]]:
    made = loader.order.keys_from(loader._drawn)
    return [key for _ in range(batches) for key in next(made)]


@pytest.mark.parametrize(
    ("count", "batch", "options", "words"),
    [
        (12, 4, {"seed": 1}, "10 -> 12 pictures"),
        (9, 4, {"seed": 1}, "10 -> 9 pictures"),
        (10, 2, {"seed": 1}, "batches of 4 -> 2 pictures"),
        (10, 4, {"seed": 2}, "seed 1 -> 2"),
        (10, 4, {"seed": 1, "drop_last": False}, "drop_last True -> False"),
    ],
)
def test_with_another_order_it_begins_anew(count: int, batch: int, options: dict[str, Any], words: str) -> None:
    """With an epoch that was not begun before, so that crops and flips are new; and exactly again from there."""
    first = Loader(dataset(10), 4, seed=1)
    indices(first, 5)  # epochs 0 and 1 of two batches each, and half of epoch 2
    other = Loader(dataset(count), batch, **options)
    assert other.load_state_dict(json.loads(json.dumps(first.state_dict()))) == [words]
    fresh = Loader(dataset(count), batch, **options)
    epochs = keys(other, 9)
    assert {epoch for epoch, _ in epochs[: other.order.used]} == {3} and epochs[other.order.used][0] == 4
    within = sorted(index for _, index in epochs[: other.order.used])
    assert len(set(within)) == len(within) <= count
    indices(other, 4)
    expected = keys(other, 9)
    assert fresh.load_state_dict(json.loads(json.dumps(other.state_dict()))) == []
    assert keys(fresh, 9) == expected
    assert next(fresh).index.tolist() == [index for _, index in expected[:batch]]


def test_processes_share_the_order_that_begins_anew() -> None:
    first = Loader(dataset(10), 4, seed=1)
    indices(first, 3)
    state = first.state_dict()
    alone, *ranks = (Loader(dataset(13), 6, seed=1, rank=r, world=w) for r, w in ((0, 1), (0, 2), (1, 2)))
    for loader in (alone, *ranks):
        assert loader.load_state_dict(state) == ["10 -> 13 pictures", "batches of 4 -> 6 pictures"]
    shares = [keys(rank, 3) for rank in ranks]
    together = [key for n in range(3) for share in shares for key in share[3 * n : 3 * n + 3]]
    assert together == keys(alone, 3) and together[0][0] == 2


def test_other_pictures_of_the_same_number_are_noticed() -> None:
    class Others(Numbers):
        def names(self) -> list[str]:
            return [f"m{i}" for i in range(self.count)]

    state = Loader(dataset(10), 4, seed=1).state_dict()
    others = Loader(RegionDataset(Others(10), 8), 4, seed=1)
    assert others.load_state_dict(state) == ["other pictures"]
    assert Loader(RegionDataset(Others(11), 8), 4, seed=1).load_state_dict(state) == ["10 -> 11 pictures"]


def test_states_of_earlier_versions_and_no_states() -> None:
    loader = Loader(dataset(10), 4, seed=1)
    assert loader.load_state_dict({"seed": 1, "batches": 5, "batch_size": 4, "length": 10}) == []
    assert keys(loader, 1)[0][0] == 2
    with pytest.raises(ValueError, match="state: expected seed, batch_size, .* got none of batches, batch_size, length"):
        loader.load_state_dict({"seed": 1})


def test_once_is_everything_in_order() -> None:
    loader = Loader(dataset(10), 4, seed=1, workers=1)
    expected = indices(Loader(dataset(10), 4, seed=1), 3)
    assert indices(loader, 2) == expected[:2]
    assert [b.index.tolist() for b in loader.once()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert indices(loader, 1) == expected[2:]  # the training order was not touched
    loader.close()
    ranks = [[b.index.tolist() for b in Loader(dataset(9), 4, rank=r, world=2).once()] for r in (0, 1)]
    assert ranks == [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7]]]


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_size: expected a positive multiple of the 4 processes, got 6"):
        Loader(dataset(10), 6, world=4)
    with pytest.raises(ValueError, match="batch_size: expected a positive multiple"):
        Loader(dataset(10), 0)
    with pytest.raises(ValueError, match="expected at most the 10 pictures there are .or drop_last=False., got 11"):
        Loader(dataset(10), 11)
    with pytest.raises(ValueError, match="seed: expected a non-negative integer, got -2"):
        Loader(dataset(10), 4, seed=-2)
    for wrong in ({"rank": 1}, {"workers": -1}, {"world": 0}, {"rank": -1}):
        with pytest.raises(ValueError, match="workers, rank, world: expected"):
            Loader(dataset(10), 4, **wrong)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_do_not_stop_an_epoch(workers: int) -> None:
    loader = Loader(dataset(10, bad=(2, 7)), 5, seed=1, workers=workers)
    with pytest.warns(UserWarning) as caught:
        batches = [next(loader) for _ in range(4)]
    said = sorted(str(w.message) for w in caught if "skipped" in str(w.message))  # torch warns of workers on one core
    assert said == ["skipped n2: n2.png: broken", "skipped n7: n7.png: broken"]
    assert Counter(name for b in batches for name in b.skipped) == {"n2": 2, "n7": 2}
    assert all(set(b.index.tolist()) <= {0, 1, 3, 4, 5, 6, 8, 9} for b in batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(loader), next(loader)
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_stop_an_epoch_if_asked(workers: int) -> None:
    source = Numbers(4, bad=(2,))
    loader = Loader(RegionDataset(source, 8, on_error="raise"), 2, workers=workers, shuffle=False)
    assert next(loader).index.tolist() == [0, 1]
    for _ in range(2):  # trying again meets the same batch
        with pytest.raises(ValueError, match="n2.png: broken"):
            next(loader)
        assert loader.state_dict()["batches"] == 1
    source.bad = ()
    assert next(loader).index.tolist() == [2, 3]
    loader.close()


def test_workers_outlive_sigterm_until_they_are_closed() -> None:
    """A batch system signals the whole group; the step under way still gets its data."""
    loader = Loader(dataset(40), 4, workers=2)
    for _ in range(4):  # of both workers: they have begun
        next(loader)
    workers = loader._batches._workers  # type: ignore[union-attr]
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(6):
        next(loader)
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    loader = Loader(RegionDataset(Numbers(8, deadly=5), 8), 2, workers=2, shuffle=False)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader worker .* (killed|exited)"):
        for _ in range(4):
            next(loader)
    assert time.monotonic() - began < 30
    loader.close()


def test_a_worker_that_dies_while_it_hands_a_batch_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its half-open connection raises is told as what it is; what the data raises stays as it is."""

    def broken(error: Exception, workers: int = 1) -> Loader:
        def batches() -> Iterator[Any]:
            raise error
            yield

        monkeypatch.setattr(Loader, "_open", lambda self, keys: batches())
        return Loader(dataset(4), 2, workers=workers)

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for error in (ConnectionResetError(104, "Connection reset by peer"), EOFError()):
        with pytest.raises(RuntimeError, match="worker exited unexpectedly while it handed over"):
            next(broken(error))
        with pytest.raises(RuntimeError, match="worker exited unexpectedly while it handed over"):
            list(broken(error).once())
    with pytest.raises(EOFError, match="here"):
        next(broken(EOFError("here"), workers=0))
    with pytest.raises(EOFError, match="of the data"):
        next(broken(EOFError("Caught EOFError in DataLoader worker process 0: of the data")))


def children() -> int:
    return len(multiprocessing.active_children())


def test_workers_end_with_the_loader() -> None:
    before = children()
    loader = Loader(dataset(10), 4, workers=2)
    next(loader)
    assert children() == before + 2
    loader.close()
    assert children() == before
    next(loader)
    assert children() == before + 2
    del loader
    gc.collect()
    assert children() == before
    batches = Loader(dataset(10), 4, workers=1).once()
    next(batches)
    del batches
    gc.collect()
    assert children() == before


def test_a_batch_costs_one_file_descriptor() -> None:
    """Tensors from a worker hold a descriptor each: dozens of patterns per batch would soon reach the limit of 1024."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc to count file descriptors")
    loader = Loader(dataset(10), 4, workers=1, plans=PLANS)
    held = [next(loader)]
    before = len(list(folder.iterdir()))
    held += [next(loader) for _ in range(8)]
    assert len(list(folder.iterdir())) - before <= 8 * 2
    assert len(held[0].regions._cache) > 10
    loader.close()


def test_workers_run_one_thread() -> None:
    class Threads(Numbers):
        def read(self, index: int) -> Sample:
            sample = super().read(index)
            sample.image[:] = torch.get_num_threads()
            return sample

    loader = Loader(RegionDataset(Threads(4), 8), 2, workers=1)
    assert ((next(loader).image + 1) * 127.5).round().unique().tolist() == [1.0]
    loader.close()


def test_data_time_is_the_time_waited() -> None:
    slow = Loader(dataset(10, slow=0.02), 4)
    next(slow)
    assert 0.08 <= slow.data_seconds < 2
    ahead = Loader(dataset(10, slow=0.02), 4, workers=1)
    next(ahead)
    time.sleep(0.5)
    next(ahead)
    assert ahead.data_seconds < slow.data_seconds  # it was ready
    ahead.close()


class Recorder:
    """Stands in for torch.cuda's streams where there is no GPU: notes what is asked of them."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def wait_stream(self, stream: object) -> None:
        self.notes.append("wait")

    def __enter__(self) -> None:
        self.notes.append("copy")

    def __exit__(self, *_: object) -> None:
        pass


def test_copies_run_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: copies to the meta device through stand-ins for streams."""
    notes: list[str] = []
    recorder = Recorder(notes)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: recorder)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: recorder)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: notes.append("keep"))
    loader = Loader(dataset(10), 2, shuffle=False)
    batches = [next(loader) for _ in range(3)]
    copied = _CopiedAhead(iter(batches), torch.device("meta"))
    first = next(copied)
    assert first.names == batches[0].names and first.image.device.type == "meta"
    assert notes == ["copy", "wait", "keep", "copy"]  # the second is on its way before the first is used
    assert [b.names for b in copied] == [b.names for b in batches[1:]]
    assert notes.count("copy") == notes.count("wait") == notes.count("keep") == 3


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_to_the_gpu_in_order(workers: int) -> None:
    here = Loader(dataset(10), 4, seed=1, plans=PLANS)
    there = Loader(dataset(10), 4, seed=1, plans=PLANS, workers=workers, device="cuda")
    for n in range(6):
        batch = next(there)
        assert batch.image.device.type == "cuda" and batch.regions.device.type == "cuda"
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert there.state_dict()["batches"] == n + 1  # one more is on its way, and does not count
        same(next(here), batch.to("cpu"))
    assert [b.index.tolist() for b in there.once()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    there.close()
