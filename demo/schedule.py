"""The learning rate schedule of the demo's training commands."""

from __future__ import annotations

import math
import time


def rate(progress: float, warmup: float = 0.03) -> float:
    """Return the share of the base learning rate at ``progress`` in 0..1: linear warm-up, then a cosine to 0."""
    if progress < warmup:
        return max(progress, 1e-4) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


class Progress:
    """The progress of a training in 0..1, the larger of the shares of its steps and of its minutes.

    With a limit in minutes, a slow machine trains for fewer steps, and the learning rate still falls to 0.
    """

    def __init__(self, steps: int, minutes: float | None):
        self.steps, self.minutes = steps, minutes
        self.started = time.time()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.time() - self.started

    def at(self, step: int) -> float:
        """Return the progress before step ``step``, counted from 0."""
        share = step / self.steps
        return max(share, self.seconds() / (60 * self.minutes)) if self.minutes else share
