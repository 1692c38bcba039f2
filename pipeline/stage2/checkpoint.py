"""Hooks of stage 2: checkpoints that stock mmdet loads, the position in the stream, and the last metrics."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from pipeline.errors import StudentError, brief
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.resume import checkpoint_folder, require_same_optimizer

RUNTIME_INFO = ("best_score", "best_ckpt", "last_ckpt", "keep_ckpt")
PLAIN = (str, int, float, list)
STUDENT, ADAPTERS = "student.", "adapters."


def unwrap_distiller(model: Any) -> Distiller:
    """Return the Distiller, without mmengine's wrapper for several ranks."""
    return model.module if is_model_wrapper(model) else model


class SaveStudent(Hook):
    """Saves the student under its own names, and adapters and digests under the key 'frs'.

    Runs last, so with EMAHook these are the averaged weights, as in mmdet. mmengine's training history contains pickled
    objects. It is left out, so checkpoints are plain data and load with weights_only=True.
    """

    priority = "LOWEST"

    def __init__(self, provenance: dict[str, Any]) -> None:
        self.provenance = provenance

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Rename the student's weights to its own names, and move all other values to 'frs'."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k.removeprefix(STUDENT): v for k, v in state.items() if k.startswith(STUDENT)}
        adapters = {k.removeprefix(ADAPTERS): v for k, v in state.items() if k.startswith(ADAPTERS)}
        # Keep only the plain values that resuming needs: the best score and the names of checkpoints.
        info = (checkpoint.pop("message_hub", None) or {}).get("runtime_info", {})
        kept = {k: v for k, v in info.items() if k.startswith(RUNTIME_INFO) and isinstance(v, PLAIN)}
        stream = runner.train_dataloader.dataset
        checkpoint["frs"] = {
            "adapters": adapters,
            "runtime_info": kept,
            **self.provenance,
            "done": runner.train_loop.done,
            "steps": len(stream),
            "global_batch": stream.global_batch,
            "planned": stream.epoch_digest(),
        }


class LoadStudent(Hook):
    """Restores the distiller's names of a checkpoint from SaveStudent. Runs first, so EMAHook finds its own names."""

    priority = "HIGHEST"

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Restore the Distiller's names and, for a resumed run, the position in the epoch. Raise StudentError."""
        state = {STUDENT + k: v for k, v in checkpoint["state_dict"].items()}
        state |= {ADAPTERS + k: v for k, v in checkpoint.get("frs", {}).get("adapters", {}).items()}
        wanted = unwrap_distiller(runner.model).state_dict()
        wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
        wrong += [k for k in wanted.keys() ^ state.keys() if k.startswith(STUDENT)]
        if wrong:
            raise StudentError(
                f"checkpoint does not fit the student: {len(wrong)} keys differ (first: {wrong[0]}); use a checkpoint "
                "of the config's model"
            )
        checkpoint["state_dict"] = state
        if runner._resume:
            self._require_same_averaging(runner, checkpoint)
            optimizer = getattr(runner.optim_wrapper, "optimizer", None)
            if optimizer is not None:
                require_same_optimizer(checkpoint["optimizer"], optimizer)
            self._set_position(runner, checkpoint)
            for key, value in self._own_info(runner, checkpoint).items():
                runner.message_hub.update_info(key, value)
        checkpoint["message_hub"] = runner.message_hub.state_dict()

    @staticmethod
    def _require_same_averaging(runner: Any, checkpoint: dict) -> None:
        """Raise StudentError where only the run or only the checkpoint has an averaged student."""
        averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if averaged != ("ema_state_dict" in checkpoint):
            found, wanted = ("without", "has") if averaged else ("with", "lacks")
            raise StudentError(
                f"checkpoint was saved {found} EMAHook, this config {wanted} it; resume with the same custom_hooks, or "
                "start a new run with load_from"
            )

    @staticmethod
    def _own_info(runner: Any, checkpoint: dict) -> dict[str, Any]:
        """Return the best score and the names of checkpoints, without files that are not this run's.

        mmengine deletes the best checkpoint that is named here when it finds a better one.
        """
        info = checkpoint.get("frs", {}).get("runtime_info", {})
        folder = Path(checkpoint_folder(runner.cfg))
        files = {key: folder / Path(value).name for key, value in info.items() if isinstance(value, str)}
        own = {key: str(path) for key, path in files.items() if path.is_file()}
        return {key: value for key, value in info.items() if key not in files} | own

    @staticmethod
    def _set_position(runner: Any, checkpoint: dict) -> None:
        """Continue after the last completed step. Raise StudentError where the batches of a started epoch differ."""
        stream, found = runner.train_dataloader.dataset, checkpoint.get("frs", {})
        stream.set_epoch(checkpoint["meta"]["epoch"])
        done, before = found.get("done", 0), found.get("global_batch", stream.global_batch)
        if done == found.get("steps"):  # saved after the last step of an epoch, before its evaluation
            done = len(stream)
        elif done and before != stream.global_batch:
            raise StudentError(
                f"checkpoint was saved inside an epoch with {before} samples per step, this run has "
                f"{stream.global_batch} (batch size times ranks); use {before}, or a checkpoint saved at an epoch's end"
            )
        elif done and found.get("planned") != stream.epoch_digest():
            raise StudentError(
                "checkpoint was saved inside an epoch with other batches than this config's; use the same "
                "randomness.seed, images and cache.passes, or a checkpoint saved at an epoch's end"
            )
        runner.train_loop.done = done


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """Keeps one complete checkpoint at any time. mmengine's hook removes old files before it writes the new one."""

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        last = Path(self.last_ckpt or (runner._load_from if runner._resume else None) or "").resolve()
        spare = Path(self.out_dir or runner.work_dir).resolve() / "previous.pth"
        if is_main_process() and last.is_file() and last.parent == spare.parent and last != spare:
            with suppress(OSError):  # without hard links, behave as mmengine does
                spare.unlink(missing_ok=True)
                spare.hardlink_to(last)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
            raise StudentError(
                f"{runner.work_dir}: cannot write a checkpoint ({brief(error)}); free disk space and rerun with "
                "--resume"
            ) from error
        if is_main_process():
            spare.unlink(missing_ok=True)


class StreamHook(Hook):
    """Sets the distiller's iteration, counts images, and measures the seconds of training without evaluation."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.metrics: dict[str, float] | None = None
        self.images, self.seconds, self._begun = 0, 0.0, 0.0

    def before_train_epoch(self, runner: Any) -> None:
        self._begun = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        unwrap_distiller(runner.model).iteration = runner.iter
        self.images += len(data_batch["inputs"])

    def after_train_epoch(self, runner: Any) -> None:
        self.seconds += time.perf_counter() - self._begun

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.metrics = {k.rsplit("/", 1)[-1]: float(v) for k, v in (metrics or {}).items()}
