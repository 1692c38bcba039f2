"""mmengine's epoch loop, made exact: a run that was stopped inside an epoch goes on with the very next batch."""

from __future__ import annotations

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
    """Takes a `Stream`'s loader; skips what a resumed epoch has behind it without reading it.

    `done`: steps made of the current epoch. Each step draws from generators seeded by (seed, step, rank), so that
    numbers alone have to be saved.
    """

    done = 0

    def run_epoch(self) -> None:
        """Train one epoch from the first step that was not made yet."""
        stream = self.dataloader.dataset
        stream.set_epoch(self._epoch)
        stream.set_start(self.done)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, start=self.done):
            self.run_iter(index, batch)
        self.done = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Make one step under its own seed."""
        seed_step(self.runner.seed, self._iter)
        self.done = idx + 1  # what a checkpoint says that is saved behind this step
        super().run_iter(idx, data_batch)


def seed_step(seed: int, step: int) -> None:
    """Dropout, samplers of boxes and whatever else draws: the same for this step whenever it is made."""
    number = mix(seed, step, get_rank())
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
