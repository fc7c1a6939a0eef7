"""The folder of a training run and what the user sees of it.

config.json                 the exact settings; after a resume with others, the former ones: config_until_<step>.json
log.jsonl                   one JSON object per logged step
samples/<name>_<step>.png   sample sheets
tensorboard/                the same scalars and sheets, where tensorboard is installed
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from mixsyn_fast.writing import json_line, write_whole

from ..settings import differences

_CONFIG, _LOG = "config.json", "log.jsonl"
_RATES = (("images_per_second", 1, "img/s"), ("data_ms", 1, "ms data"))  # name, decimals, unit in the bar
_BAR = "{percentage:3.0f}% {n}/{total} steps [{elapsed}, {remaining} left]{postfix}"


def read_log(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a run's log.jsonl, in order of steps; a line that a kill left incomplete is passed over.

    Numbers that JSON cannot hold stand there as "nan", "inf", "-inf": float() reads them.
    """
    place = Path(folder) / _LOG
    entries = []
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


class Run:
    """Context manager around a training: run folder, log, sheets, progress bar, and a polite end on SIGTERM and SIGINT.

    ::

        with Run(folder, to_dict(config), total_steps=1000, start_step=start) as run:
            for step in range(start, 1000):
                ...
                run.advance(step + 1)
                run.log(step + 1, {"loss/generator": loss, "lr": lr, "images_per_second": rate, "data_ms": waited})
                if run.stop_requested:
                    save and leave

    Attributes:
        folder: the run folder.
        stop_requested: SIGTERM or SIGINT came. With several processes ask any_rank(run.stop_requested), so that all leave
            in the same step. A second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        rank: int = 0,
        total_steps: int,
        start_step: int = 0,
        quiet: bool = False,
        tensorboard: bool = True,
    ) -> None:
        """Describe a run; nothing is written before the context is entered.

        Args:
            folder: the run folder; made if need be.
            config: the settings as a JSON dict.
            rank: number of this process; all but 0 write and show nothing.
            total_steps: steps of the whole run.
            start_step: steps that were done before (resumed run). What was logged after it is dropped from the log.
            quiet: no bar and no messages on the terminal.
            tensorboard: write TensorBoard's files as well, where it is installed.

        Raises:
            ValueError: steps out of range, or config is not JSON.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps: expected at least 1, got {total_steps!r}")
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start_step: expected 0 to total_steps = {total_steps}, got {start_step!r}")
        try:
            self._config_text = json.dumps(config, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: expected a JSON dict: {error}") from error
        self.folder = Path(folder)
        self.stop_requested = False
        self._interrupted = False  # by SIGINT
        self._main = rank == 0
        self._total, self._start = total_steps, start_step
        self._quiet = quiet or not self._main
        self._want_tensorboard = tensorboard
        self._log: Any = None
        self._board: Any = None
        self._bar: Any = None
        self._handlers: dict[int, Any] = {}
        self._said: set[str] = set()

    # ---- beginning and end -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Make the folder, open log and bar, install the signal handlers."""
        self._pid = os.getpid()
        if self._main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_config()
            entries = self._keep_log()
            self._log = (self.folder / _LOG).open("a", encoding="utf-8")
            self._seconds_before = float(entries[-1].get("seconds", 0.0)) if entries else 0.0
            self._board = self._open_board() if self._want_tensorboard else None
            self._bar = None if self._quiet else self._open_bar()
        self._begin = time.perf_counter()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close everything and put the signal handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()
        for part in (self._bar, self._board, self._log):
            if part is not None:
                part.close()
        self._bar = self._board = self._log = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a worker forked from this process: it ends as if there were no handler
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return  # Ctrl-C reaches workers too, and they are needed until the main process has saved
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.stop_requested = True
        if self._main:  # os.write: a handler may interrupt a print, which is not reentrant
            hint = "; again to leave without saving" if number == signal.SIGINT else ""
            os.write(2, f"\n{signal.Signals(number).name}: saving after this step{hint}\n".encode())

    def _write_config(self) -> None:
        place = self.folder / _CONFIG
        if self._start and place.exists():
            before = place.read_text(encoding="utf-8")
            try:
                changes = differences(json.loads(before), json.loads(self._config_text))
            except (ValueError, AttributeError, TypeError):
                self.message(f"{place}: not readable, written anew")
            else:
                for change in changes:
                    self.message(f"setting changed on resume: {change}")
                if not changes:
                    return
            write_whole(self.folder / f"config_until_{self._start:08d}.json", before)
        write_whole(place, self._config_text + "\n")

    def _keep_log(self) -> list[dict[str, Any]]:
        """Drop what was logged after the step to resume from, and return the rest."""
        place = self.folder / _LOG
        entries = [entry for entry in read_log(self.folder) if entry["step"] <= self._start] if self._start else []
        if place.exists():
            write_whole(place, "".join(map(json_line, entries)))
        return entries

    def _open_board(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say_once("TensorBoard is not installed (pip install 'mixsyn_fast[models]'); log.jsonl holds the scalars")
            return None
        # on resume, TensorBoard hides what lies after the step to resume from
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._start + 1 if self._start else None)

    def _open_bar(self) -> Any:
        try:
            from tqdm import tqdm
        except ImportError:
            self._say_once("tqdm is not installed (pip install 'mixsyn_fast[models]'): no progress bar")
            return None
        every = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file need not hold every move of the bar
        return tqdm(total=self._total, initial=self._start, bar_format=_BAR, mininterval=every, dynamic_ncols=True)

    # ---- while training ----------------------------------------------------------------------------

    def message(self, text: str) -> None:
        """Show a line above the progress bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.message(text)

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, scalars: Mapping[str, float | Tensor]) -> None:
        """Write the scalars of a step to log.jsonl and TensorBoard, and show them in the bar.

        Added is "seconds" (since the run began, those before a resume included).

        Args:
            step: steps done, not below that of the last call.
            scalars: name -> number or tensor of one element. The bar begins with "images_per_second" and "data_ms" (what a
                step waited for its data), where they are there.
        """
        if not self._main:
            return
        now = time.perf_counter()
        entry: dict[str, Any] = {"step": step, "seconds": round(self._seconds_before + now - self._begin, 3)}
        entry |= {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in scalars.items()}
        self._log.write(json_line(entry))
        self._log.flush()
        if self._board is not None:
            for name, value in entry.items():
                if name not in ("step", "seconds"):
                    self._board.add_scalar(name, value, step)
        if self._bar is not None:
            shown = {name: f"{value:.4g}" for name, value in entry.items() if name not in ("step", "seconds")}
            parts = [f"{entry[n]:.{d}f} {unit}" for n, d, unit in _RATES if shown.pop(n, None) is not None]
            self._bar.set_postfix_str(", ".join(parts + [f"{name} {value}" for name, value in shown.items()]), refresh=False)
        self.advance(step)

    def sheet(self, name: str, step: int, rows: Sequence[Sequence[np.ndarray]]) -> Path | None:
        """Write a sheet of pictures to samples/<name>_<step>.png and to TensorBoard.

        Args:
            name: kind of the sheet.
            step: steps done.
            rows: rows of pictures (H, W, 3) uint8.

        Returns:
            The file; None in other processes than the first and where pillow is not installed (said once).
        """
        if not self._main:
            return None
        from ..sheets import contact_sheet, save_png

        picture = contact_sheet([list(row) for row in rows])
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")
        place = self.folder / "samples" / f"{name}_{step:08d}.png"
        try:
            save_png(picture, place)
        except ImportError:
            self._say_once("pillow is not installed (pip install 'mixsyn_fast[models]'): no sample sheets")
            return None
        return place
