"""mmengine's epoch loop with exact resume: a run interrupted inside an epoch resumes with the next batch."""

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
        self.done = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one step with its own seed."""
        seed_step(self.runner.seed, self._iter)
        self.done = idx + 1  # saved in a checkpoint after this step
        super().run_iter(idx, data_batch)


def seed_step(seed: int, step: int) -> None:
    """Seed all generators for a step, so that dropout and box samplers draw the same after a resume."""
    number = mix(seed, step, get_rank())
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
