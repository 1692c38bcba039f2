"""Stop a diverged student: end the run before a loss or weight that is not finite is saved."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from pipeline.errors import StudentError
from pipeline.stage2.checkpoint import unwrap_distiller

INTERVAL = 50  # steps between two reads of a GPU's losses; each read waits for the GPU


class FiniteHook(Hook):
    """Raises StudentError, which names the step, the loss term and the last good checkpoint.

    Losses are checked on their device at every step. The result is read every INTERVAL steps, at the end of each epoch
    and before each checkpoint; on a CPU, at every step. Weights are checked at the end of each epoch and before each
    checkpoint.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first: Tensor | None = None  # (T,) step at which each term was first not finite, or -1

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Record the terms that are not finite."""
        terms = {name: value for name, value in (outputs or {}).items() if isinstance(value, Tensor)}
        if not terms:
            return
        if list(terms) != self._names:
            self._names, self._first = list(terms), None
        finite = torch.stack([value.detach().float().mean() for value in terms.values()]).isfinite()
        if self._first is None:
            self._first = torch.full((len(terms),), -1, dtype=torch.int64, device=finite.device)
        self._first = torch.where(~finite & (self._first < 0), runner.iter, self._first)
        if finite.device.type == "cpu" or (runner.iter + 1) % INTERVAL == 0:
            self._check_losses(runner)

    def after_train_epoch(self, runner: Any) -> None:
        self._check(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._check(runner)

    def _check(self, runner: Any) -> None:
        self._check_losses(runner)
        for name, parameter in unwrap_distiller(runner.model).named_parameters():
            if not bool(parameter.isfinite().all()):
                raise self._error(runner, runner.iter, f"weight {name}")

    def _check_losses(self, runner: Any) -> None:
        if self._first is None:
            return
        steps = self._first.tolist()
        wrong = {name: step for name, step in zip(self._names, steps) if step >= 0}
        if wrong:
            # Name a term rather than the total, which is not finite either.
            name = min(wrong, key=lambda name: (wrong[name], name == "loss"))
            raise self._error(runner, wrong[name], name)

    @staticmethod
    def _error(runner: Any, step: int, what: str) -> StudentError:
        last = runner.message_hub.runtime_info.get("last_ckpt")
        good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
        return StudentError(
            f"step {step + 1}: {what} is NaN or infinite, the student has diverged; lower the learning rate or the "
            f"distillation weights; {good}"
        )
