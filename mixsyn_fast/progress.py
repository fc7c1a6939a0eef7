"""Say what is going on when it takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

PATIENCE_S = 2.0  # quiet for this long, then a line
AGAIN_S = 20.0  # and another one every so often


@contextmanager
def progress(
    what: str, *, stream: TextIO | None = None, patience_s: float = PATIENCE_S
) -> Iterator[Callable[[int, int], None]]:
    """Announce `what` on stderr when the body of the `with` takes longer than `patience_s`, and its end.

    The body gets a function (done, total): how far it is, which the lines then say, with the time that is left at that rate.

    Args:
        what: the work, e.g. "compiling the dense generator".
        stream: where to write; stderr when None.
        patience_s: seconds of silence before the first line.
    """
    out = stream if stream is not None else sys.stderr
    start, done, spoke = time.perf_counter(), threading.Event(), threading.Event()
    far: list[str] = [""]

    def at(count: int, total: int) -> None:
        left = (time.perf_counter() - start) * (total - count) / count if count else None
        far[0] = f", {count} of {total}" + ("" if left is None else f", about {left:.0f} s left")

    def speak() -> None:
        wait = patience_s
        while not done.wait(wait):
            spoke.set()
            print(f"  ... {what} ({time.perf_counter() - start:.0f} s so far{far[0]})", file=out, flush=True)
            wait = AGAIN_S

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield at
    finally:
        done.set()
        speaker.join()
        if spoke.is_set():
            print(f"  ... {what}: {time.perf_counter() - start:.1f} s", file=out, flush=True)
