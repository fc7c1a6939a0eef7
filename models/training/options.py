"""Options of the training loop, the same for every model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .schedule import Schedule


@dataclass(frozen=True)
class Options:
    """Options of the loop, the same for every model."""

    out: str = "runs/latest"  # run folder: config, log, sheets, checkpoints
    steps: int = 100_000  # optimiser steps of every phase
    batch_size: int = 8  # images per step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches per step: their gradients are averaged
    drop_last: bool = True  # leave out an epoch's pictures that fill no batch; no: fill it from the next epoch
    workers: int = 1  # data processes per training process; 0 reads in the training process itself
    seed: int = 0  # of weights, data order, crops, noise
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    amp: Literal["none", "fp16", "bf16"] = "none"  # autocast; fp16 with a loss scaler
    channels_last: bool = True  # layout of the networks' weights
    compile: bool = False  # torch.compile every network
    clip_norm: float = 0.0  # largest 2-norm of a phase's gradient; 0 for no clipping
    schedule: Schedule = field(default_factory=Schedule)
    ema_decay: float = 0.999  # decay per step of the averaged weights; 0 for none
    deterministic: bool = False  # only deterministic algorithms, where torch has them (slower on a GPU)
    log_every: int = 10  # steps between two lines of the log
    sheet_every: int = 500  # steps between two sample sheets; 0 for none
    sheet_images: int = 4  # images of a sample sheet
    validate_every: int = 1000  # steps between two validations; 0 for none
    validate_images: int = 64  # at most so many images of the validation set; 0 for all
    save_every: int = 500  # steps between two checkpoints; 0 for none at all, not even at the end
    keep_last: int = 3  # newest checkpoints kept
    best: str = "auto"  # figure of the validation whose best checkpoint is kept; - before it: smaller is better; auto: the
    # model's own
    resume: str = "auto"  # auto: from the run folder's newest valid checkpoint; no; or a checkpoint folder
    rename_classes: bool = False  # resume although the classes have other names now (never with another number of them)
    init_from: str = ""  # begin with the weights alone of a run folder, a checkpoint folder or a file of weights
    plan: Literal["auto", "table", "dense"] = "auto"  # algebra of the layers; dense computes as published
    backend: Literal["auto", "native", "triton", "reference"] = "auto"  # kernels of the ops
    timeout: float = 600.0  # seconds that a process waits for the others, sheets and saving by the first one included

    def __post_init__(self) -> None:
        """Check every field once."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "sheet_images", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("workers", "save_every", "sheet_every", "validate_every", "validate_images", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout: expected a positive number of seconds, got {self.timeout}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 <= decay < 1, got {self.ema_decay}")
        if self.init_from and self.resume not in ("auto", "no"):
            raise ValueError(f"init_from: expected none with resume {self.resume}, got {self.init_from}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size: expected a multiple of accumulate {self.accumulate}, got {self.batch_size}")
