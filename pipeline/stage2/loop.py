"""mmengine's epoch loop with exact resume: a run interrupted inside an epoch resumes with the next batch."""

from __future__ import annotations

import bisect
import math
import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from pipeline.cache.shard_plan import mix


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Trains from a `Stream`'s loader. A resumed epoch skips its completed steps without reading them.

    `done`: completed steps of the current epoch. Each step uses generators seeded by (seed, step, rank), so no
    generator state is saved.
    """

    done = 0

    def run_epoch(self) -> None:
        """Train one epoch from the first step that is not done."""
        stream = self.dataloader.dataset
        stream.set_epoch(self._epoch)
        stream.set_start(self.done)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, start=self.done):
            self.run_iter(index, batch)
            if self.is_complete():
                break
        self.done = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def is_complete(self) -> bool:
        """Return whether training ends inside the epoch."""
        return False

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step with its own seed."""
        seed_step(self.runner.seed, self._iter)
        self.done = idx + 1  # saved in a checkpoint after this step
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ResumableIterLoop(ResumableTrainLoop):
    """Trains `max_iters` steps, pass after pass, and validates every `val_interval` steps.

    Steps, schedules and validation are those of mmengine's IterBasedTrainLoop. Its endless order of samples is replaced
    by the passes of the cache, so that each sample is seen once before any is seen again.
    """

    def __init__(
        self, runner: Any, dataloader: Any, max_iters: int, val_interval: float = 1000, **settings: Any
    ) -> None:
        settings.pop("fast_forward_on_resume", None)  # a resumed run never reads what it skips
        epochs = math.ceil(max_iters / len(dataloader))
        super().__init__(runner, dataloader, max_epochs=epochs, val_interval=int(val_interval), **settings)
        self._max_iters = int(max_iters)

    def run(self) -> Any:
        """Train all steps."""
        self.runner.call_hook("before_train")
        while not self.is_complete():
            self.run_epoch()
        self.runner.call_hook("after_train")
        return self.runner.model

    def is_complete(self) -> bool:
        return self._iter >= self._max_iters or self.stop_training

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step, and validate if it is due."""
        super().run_iter(idx, data_batch)
        self._decide_current_val_interval()
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if due and self._iter >= self.val_begin and self.runner.val_loop is not None:
            self.runner.val_loop.run()
            self.runner.model.train()

    def _decide_current_val_interval(self) -> None:
        step = bisect.bisect(self.dynamic_milestones, self._iter + 1)
        self.val_interval = self.dynamic_intervals[step - 1]


RESUMABLE = {"EpochBasedTrainLoop": ResumableTrainLoop, "IterBasedTrainLoop": ResumableIterLoop}


def seed_step(seed: int, step: int) -> None:
    """Seed all generators for a step, so that dropout and box samplers draw the same after a resume."""
    number = mix(seed, step, get_rank())
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
