"""The time of a forecast, and what it leaves out to keep to it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts down from `seconds`. `now`: seconds of a clock. `left_out`: what was skipped or cut short, in words."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.seconds, self.begun = now, seconds, now()
        self.left_out: dict[str, None] = {}

    @property
    def left(self) -> float:
        """The seconds that are left; 0 if none are."""
        return max(0.0, self.seconds - (self.now() - self.begun))

    def leave_out(self, what: str) -> None:
        """Note that something is skipped or cut short."""
        self.left_out[what] = None
