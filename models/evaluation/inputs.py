"""What is judged and by what: folders of outputs, a trained model, folders of several outputs per input; their references.

Everything streams. A file that is missing, left over, unreadable or of another size is named in `problems` and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from mixsyn_fast.progress import progress

from ..data import Collate, DataOptions, ReaderOptions, RegionDataset, Source
from ..data.files import is_hidden, plain_name
from ..data.region_types import merge_of
from ..data.sets import DRAWN_KINDS
from ..pictures.files import list_pictures, read_image
from ..pictures.options import ModelOptions, drawn_source
from ..settings import at_least, read_json
from ..sheets import to_uint8
from .compare import Compared

if TYPE_CHECKING:
    from ..training import Trained

_DRAWN = 8  # pictures that are drawn where no data set is given
_GLOBAL_MODELS = ("spade", "clade")


class Reference(Protocol):
    """Pictures to compare with, by name."""

    classes: tuple[str, ...]
    """Names of the regions; empty where there are no label maps."""

    def names(self) -> list[str]:
        """Return the names, sorted."""
        ...

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the picture (H, W, 3) uint8 and its labels (H, W) or None; ValueError, naming the file, if it is bad."""
        ...


class PictureReference:
    """A folder of pictures without label maps. FileNotFoundError when there is none."""

    classes: tuple[str, ...] = ()

    def __init__(self, folder: str) -> None:
        self.files = list_pictures(folder)

    def names(self) -> list[str]:
        """Return the names, sorted."""
        return list(self.files)

    def read(self, name: str) -> tuple[np.ndarray, None]:
        """Read a picture; ValueError, naming the file, if it is bad."""
        return read_image(self.files[name]), None


class DataReference:
    """The pictures and label maps of a data set.

    Args:
        source: the set.
        dataset: the source at one size, as in training; None: pictures as stored. It raises for a bad file from now on.
    """

    def __init__(self, source: Source, dataset: RegionDataset | None = None) -> None:
        self.source, self.classes, self.dataset = source, tuple(source.classes), dataset
        self.index = {name: i for i, name in enumerate(source.names())}
        if dataset is not None:
            dataset.on_error = "raise"

    def names(self) -> list[str]:
        """Return the names, sorted."""
        return list(self.index)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a picture and its labels, None in a set without label maps; ValueError, naming the file, if one is bad."""
        item = (self.source.read if self.dataset is None else self.dataset.__getitem__)(self.index[name])
        return item.image, item.labels if self.classes else None


@dataclass(frozen=True)
class ModelOnDataOptions(ReaderOptions, ModelOptions):
    """A model and a data set that it looks at."""

    data: str = ""  # data set with label maps; empty: pictures drawn by code
    kind: str = "auto"  # layout of the data set; auto: by what the folder holds, and without a folder what the model knows
    split: str = "val"  # part of the data set
    unknown: Literal["class", "none"] = "class"  # pixels without a known class: one more class, or no region
    merge: Literal["none", "meta", "compact", "scenes"] | None = None  # region types to merge into; none: the model's
    limit: int | None = None  # only the first so many pictures; none: all
    seed: int = 0  # of what the model draws, of the bootstrap, and of drawings

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, limit=1, seed=0)
        if self.split in ("none", "auto"):
            raise ValueError(f"split: expected train, val, test or all, got {self.split!r}")


@dataclass(frozen=True)
class JudgedModelOptions(ModelOnDataOptions):
    """A model and the data set that it is judged on."""

    inception: str | None = None  # TorchScript feature network for FID; it holds code: name only a trusted file


def check_classes(expected: Sequence[str], got: Sequence[str], name: str) -> None:
    """Check that a data set has the classes of the model, in its order.

    Raises:
        ValueError: it has not; the message names the classes that differ.
    """
    if tuple(expected) == tuple(got):
        return
    lacking, more = ([c for c in a if c not in b] for a, b in ((expected, got), (got, expected)))
    parts = [f"it lacks {', '.join(lacking)}"] * bool(lacking) + [f"it has {', '.join(more)} instead"] * bool(more)
    if not parts:
        at = next(k for k, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1])
        parts = [f"in the model's order, class {at} is {expected[at]}, not {got[at]}"]
    raise ValueError(f"data: expected the model's {len(expected)} classes, got {len(got)} of {name}: {'; '.join(parts)}")


def reference_of_model(
    options: ModelOnDataOptions,
    classes: Sequence[str],
    size: tuple[int, int],
    drawn: int = _DRAWN,
    kinds: Sequence[str] = DRAWN_KINDS,
    crop: Literal["center", "none"] = "center",
) -> DataReference:
    """Open the data set of the options in a model's region types and size; without one, pictures drawn by code.

    Args:
        options: the data set.
        classes: the model's.
        size: (H, W) of the model's images in pixels.
        drawn: how many are drawn, where there is no set.
        kinds: of drawings, those that are preferred first.
        crop: what the model sees of a picture of other proportions, the middle or all of it, squeezed.

    Raises:
        ValueError, FileNotFoundError: no such set, or one of other classes.
    """
    if not options.data and options.kind == "auto":
        made = drawn_source(classes, size, drawn, options.seed, kinds)
        return DataReference(made, RegionDataset(made, size))
    data = DataOptions(
        data=options.data,
        kind=options.kind,
        unknown=options.unknown,
        merge=options.merge or merge_of(classes),
        size=size,
        crop=crop,
        **options.reader_options(),
    )
    dataset = data.validation_set(options.split)
    assert dataset is not None  # only the split "none" has none, and it is refused
    check_classes(classes, dataset.source.classes, dataset.source.name)
    return DataReference(dataset.source, dataset)


def load_vae(model: str, device: torch.device | str) -> Trained | None:
    """Load a run of SPADE or CLADE with the image encoder of a VAE, whose code is all that an image takes of another.

    Args:
        model: a run folder; what else it may be is up to the caller.
        device: where to put it.

    Returns:
        The run, or None where `model` is no run folder of these two.

    Raises:
        ValueError, FileNotFoundError: such a run, but damaged or without a code; the message names the path.
    """
    config = Path(model, "config.json")
    kind = read_json(config).get("model") if config.is_file() else None
    if kind not in _GLOBAL_MODELS:
        return None
    from ..training import load_trained

    try:
        with progress("loading the model"):
            trained = load_trained(model, device=device)
    except KeyError as error:
        raise ValueError(f"{config}: expected a run of `mixsyn-fast train {kind}`, got none of {error}") from error
    if "encoder" not in trained.networks:
        raise ValueError(f"model: {model}: expected a {kind} trained with --generator.use-vae, got one without a code")
    return trained


def match(outputs: Sequence[str], reference: Sequence[str], limit: int | None, problems: list[str]) -> list[str]:
    """Return the names that both have, in the order of the reference; name the rest in `problems`.

    With `limit`, only so many names of the reference are asked for; outputs of its other names are no problem.
    """
    asked, have = list(reference)[:limit], set(outputs)
    both = [name for name in asked if name in have]
    if both:  # otherwise all would be named
        problems += [f"{name}: no output of this name" for name in asked if name not in have]
        known = set(reference)
        problems += [f"{name}: an output, but no reference of this name" for name in outputs if name not in known]
    return both


def pairs_of_files(
    outputs: dict[str, Path], reference: Reference, names: Sequence[str], problems: list[str]
) -> Iterator[Compared]:
    """Read outputs with their references."""
    for name in names:
        try:
            output = read_image(outputs[name])
            target, labels = reference.read(name)
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {error}")
            continue
        if output.shape != target.shape:
            found, expected = (f"{shape[1]} x {shape[0]}" for shape in (output.shape, target.shape))
            problems.append(f"{name}: output {outputs[name]} is {found}, its reference {expected} (width x height)")
            continue
        yield Compared(name, output, target, labels)


@dataclass
class Drawn:
    """Several outputs of one input."""

    name: str
    outputs: list[np.ndarray]
    """(H, W, 3) uint8 each; those for which everything was drawn anew. May be empty."""
    target: np.ndarray | None = None
    labels: np.ndarray | None = None
    by_class: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Class -> outputs for which only the code of this class was drawn anew."""


def outputs_of_run(
    trained: Trained,
    reference: DataReference,
    names: Sequence[str],
    problems: list[str],
    *,
    batch_size: int,
    device: torch.device | str,
    seed: int,
    draws: int = 1,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Drawn]:
    """Run a model on the label maps (and pictures) of a data set, `draws` times with different random numbers.

    Random numbers depend on (seed, place of the batch, draw) alone. Of `size` processes, number `rank` makes every
    `size`-th batch, so batches and outputs are the same for any number of them.
    """
    collate = Collate(len(reference.classes), tuple(trained.task.plans))
    assert reference.dataset is not None  # a batch needs one size
    for start in range(rank * batch_size, len(names), size * batch_size):
        items = []
        for name in names[start : start + batch_size]:
            try:
                items.append(reference.dataset[reference.index[name]])
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
        if not items:
            continue
        batch = collate(items).to(device)
        targets = to_uint8(trained.task.wanted(batch))  # their size is that of what is made
        labels = batch.regions.labels_at(targets.shape[1:3]).cpu().numpy()
        made = []
        for draw in range(draws):
            torch.manual_seed(int(np.random.SeedSequence((seed, start, draw)).generate_state(1)[0]))
            made.append(to_uint8(trained.generate(batch)))
        for i, item in enumerate(items):
            yield Drawn(item.name, [images[i] for images in made], targets[i], labels[i])


def samples_of_folder(
    folder: str, reference: Reference | None, limit: int | None, problems: list[str], rank: int = 0, size: int = 1
) -> Iterator[Drawn]:
    """Read `folder/<input>/*.png` (outputs of an input) and `folder/<input>/<class>/*.png` (only this class differs).

    A class is given by name or number. Label maps and targets come from the reference of the input's name, if there is one.
    Of `size` processes, number `rank` reads every `size`-th input.

    Raises:
        FileNotFoundError: no such folder, or no subfolder in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    inputs = _folders(root)[:limit]
    if not inputs:
        raise FileNotFoundError(f"{root}: expected one subfolder per input, with several outputs each")
    known = set(reference.names()) if reference is not None else set()
    classes = reference.classes if reference is not None else ()
    for place in inputs[rank::size]:
        input_name = plain_name(place.name)
        try:
            target, labels = reference.read(input_name) if reference is not None and input_name in known else (None, None)
            drawn = Drawn(input_name, _pictures_in(place), target, labels)
            for inner in _folders(place):
                name = plain_name(inner.name)
                region = classes.index(name) if name in classes else None
                if name.isdecimal() and int(name) < len(classes):
                    region = int(name)
                if region is None or labels is None:
                    problems.append(f"{inner}: " + ("no class of this name" if labels is not None else "no label map"))
                    continue
                drawn.by_class[region] = _pictures_in(inner)
            if reference is not None and target is None:
                problems.append(f"{place}: no reference of this name")
            sized = [target] if target is not None else []
            if len({p.shape for p in (*sized, *drawn.outputs, *(p for ps in drawn.by_class.values() for p in ps))}) > 1:
                raise ValueError(f"{place}: expected pictures of one size, that of the reference")
        except (ValueError, OSError) as error:
            problems.append(f"{input_name}: {error}")
            continue
        yield drawn


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir() and not is_hidden(place.name))


def _pictures_in(folder: Path) -> list[np.ndarray]:
    try:
        return [read_image(path) for path in list_pictures(folder, deep=False).values()]
    except FileNotFoundError:
        return []
