"""The file of a trained model, one format for all papers: networks and config in one safetensors file, verified when read.

The header of the file names the paper's format, its version, the config as JSON, and the SHA-256 of all tensors, for
safetensors itself has no check of its contents. A file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mixsyn_fast.writing import write_whole

from .checkpoints import load_checked, refuse_other_files
from .settings import from_dict, to_dict

C = TypeVar("C")


@dataclass(frozen=True)
class TensorFile:
    """Named tensors with a few lines about them in one safetensors file.

    Args:
        kind: the format in the header is ``mixsyn_fast.<kind>``.
        owner: class whose ``save`` writes such files, or words for who does, for messages.
        version: of the format; a file of another one is refused.
        also: what else a caller's path may be, for messages.
    """

    kind: str
    owner: str
    version: str = "1"
    also: str = ""

    @property
    def writer(self) -> str:
        """Who writes such files, for messages: a class's `save`, or as `owner` says it in words."""
        return self.owner if " " in self.owner else f"{self.owner}.save"

    @property
    def format(self) -> str:
        """Name of the format in the header."""
        return f"mixsyn_fast.{self.kind}"

    def save(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Write tensors (on the CPU) and the lines about them, whole or not at all.

        Raises:
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        tensors = {name: _stored(name, value, False) for name, value in tensors.items()}
        header = {"format": self.format, "version": self.version, **about, "sha256": _digest(tensors)}
        write_whole(path, _safetensors().torch.save(tensors, header))

    def load(self, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Read a file of :meth:`save`: its tensors, and its header.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, or of another kind or version; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (expected a file of {self.writer}{self.also})")
        library = _safetensors()
        refuse_other_files(path, f"a safetensors file of {self.writer}")
        try:
            with library.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (library.SafetensorError, ValueError, OSError) as error:
            raise ValueError(
                f"{path}: expected a safetensors file of {self.writer}, got a file that is none, or is damaged ({error})"
            ) from error
        for key, expected in (("format", self.format), ("version", self.version)):
            if metadata.get(key) != expected:
                raise ValueError(
                    f"{path}: expected a file of {self.writer} with {key} {expected!r}, got {metadata.get(key)!r}"
                )
        if metadata.get("sha256") != _digest(tensors):
            raise ValueError(f"{path}: damaged: the SHA-256 of its weights is not that of what was written")
        return tensors, metadata


@dataclass(frozen=True)
class ModelFile(Generic[C]):
    """How the models of one paper are stored.

    Args:
        paper: folder of the paper below models/; the format in the header is ``mixsyn_fast.<paper>``.
        model: class whose ``save`` writes such files, for messages.
        config: dataclass of the networks' config.
        version: of the format; a file of another one is refused.
    """

    paper: str
    model: str
    config: type[C]
    version: str = "1"

    @property
    def file(self) -> TensorFile:
        """The file as such."""
        return TensorFile(self.paper, self.model, self.version, ", or a run folder")

    def save(
        self, path: str | os.PathLike[str], config: C, networks: Mapping[str, nn.Module], *, half: bool = False
    ) -> None:
        """Write networks and config to one file, whole or not at all.

        Args:
            path: of the file, as a rule *.safetensors; folders are made. A file that is there is replaced.
            config: of the networks.
            networks: part name -> network; tensors are named "<part>.<name>".
            half: store floating tensors as float16 (half the size, about three decimal digits).

        Raises:
            ValueError: `half`, and a weight that float16 cannot hold.
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        state = nn.ModuleDict(dict(networks)).state_dict()
        tensors = {name: _stored(name, value, half) for name, value in state.items()}
        self.file.save(path, tensors, {"config": json.dumps(to_dict(config))})

    def load(
        self, path: str | os.PathLike[str], build: Callable[[C], Mapping[str, nn.Module]]
    ) -> tuple[C, dict[str, nn.Module]]:
        """Read a file of :meth:`save`.

        Args:
            path: of the file.
            build: config -> part name -> network, as they were saved; what it draws from torch's random numbers on the CPU
                is put back.

        Returns:
            The config, and the networks on the CPU with the file's weights (float16 becomes the networks' own dtype).

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, of another paper or version, or with weights that do not fit; the message names the path.
            ImportError: safetensors is not installed.
        """
        path = Path(path)
        tensors, metadata = self.file.load(path)
        try:
            config = from_dict(self.config, json.loads(metadata["config"]))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: expected the config of a {self.model}, got: {error}") from error
        with torch.random.fork_rng(devices=[]):  # first weights, drawn in vain: the program's random numbers go on as before
            networks = nn.ModuleDict(dict(build(config)))
        load_checked(networks, tensors, source=str(path))
        return config, dict(networks.items())

    def shipped(self, name: str) -> Path:
        """Return the file `weights/<name>.safetensors` that comes with the paper's folder.

        Raises:
            FileNotFoundError: this installation came without it.
        """
        folder = Path(__file__).parent / self.paper / "weights"
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(f"{path}: no such weights came with the package; there are: {there}")
        return path


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters as float16 numbers: that of a file in half precision is the same."""
    sha = hashlib.sha256()
    for name, value in sorted(network.named_parameters()):
        small = value.detach().to("cpu", torch.float16).contiguous()
        sha.update(f"{name} {tuple(value.shape)};".encode())
        sha.update(small.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("files of models need safetensors: pip install 'mixsyn_fast[models]'") from error
    return safetensors


def _stored(name: str, value: Tensor, half: bool) -> Tensor:
    """A tensor as it goes into the file: contiguous, on the CPU, of its own memory."""
    value = value.detach().cpu().contiguous()
    if half and value.is_floating_point():
        small = value.half()
        if not bool((torch.isfinite(small) == torch.isfinite(value)).all()):
            raise ValueError(f"half: float16 cannot hold {name}, whose largest value is {value.abs().max().item():.4g}")
        return small
    return value.clone()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
