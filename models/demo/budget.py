"""How often things are timed: as often as asked for, and less often where they are slow, as on a machine with other work.

The first run of everything always happens, for its result is compared. It pays one-time costs, so its time counts only where
there is no time for another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Budget:
    """Seconds of wall time, counted from now on, in which repetitions must fit.

    Args:
        seconds: how many.
        clock: tells seconds; never goes back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.end = clock() + seconds

    def left(self) -> float:
        """Return the seconds that are left; negative where none are."""
        return self.end - self.clock()

    def share(self, part: float) -> Budget:
        """Return a budget of a part (0 to 1) of what is left."""
        return Budget(part * max(self.left(), 0.0), self.clock)

    def rounds(self, most: int) -> Iterator[int]:
        """Yield 0, 1, ... up to `most`: the first run in any case, then repetitions while one as long as the last fits."""
        last = 0.0
        for turn in range(most + 1):
            if turn > 0 and last > self.left():
                return
            start = self.clock()
            yield turn
            last = self.clock() - start
