"""Measure time and memory of a training step: the student alone, with the teacher in the loop, and from the cache.

python benchmarks/step.py --json docs/results/step.json                      # the demo's thin detectors, CPU
python benchmarks/step.py --config configs/coco/retinanet_r101_r50_2x.py --device cuda --workers 8 \\
    --batch-sizes 2 8 --precisions fp32 tf32 amp --batches loaded synthetic --options cache.dir=work_dirs/cache

Each variant is a process with its own data loading. The variants alternate, a few steps at a time, so the machine's
noise affects all equally. `alone` is plain mmdet with its own DataLoader and detector. Data loading is the time of
waiting for the next batch. Batches that workers prefetched during the turns of other variants are discarded, and one
step runs before the measurement, so a loader that is too slow is detected. With `synthetic` batches, one batch is
loaded and used for all steps, so only compute is measured. fp32 has TF32 off, tf32 has it on, and amp is mmengine's
AmpOptimWrapper (fp16) with TF32. A live teacher uses TF32 if its student does. The data set is repeated, so no epoch
ends in a measurement.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

VARIANTS = ("alone", "live", "cached")
PRECISIONS = ("fp32", "tf32", "amp")
COLUMNS = ["variant", "batches", "batch_size", "precision", "seconds_a_step", "wait_share", "memory_mb", "steps"]
EPOCH = 20_000  # smallest number of views of an epoch; a small cache is repeated


class Setting(NamedTuple):
    """The setting of a measurement. `batches`: 'loaded' or 'synthetic'."""

    batches: str
    batch_size: int
    precision: str


class Turn(NamedTuple):
    """Some steps of one variant: seconds, seconds of waiting for data, and peak memory in MB."""

    seconds: float
    waited: float
    memory_mb: float


class Trainer:
    """The model and loaders of one variant, built as by stage 2 or by mmdet's tools."""

    def __init__(self, variant: str, args: argparse.Namespace) -> None:
        import torch

        from pipeline.mmdet_compat.registry import MODELS, build
        from pipeline.stage2.runner import wrap_student
        from pipeline.stage2.teacher_data import prepare_teacher_data
        from pipeline.teacher.model import own_device

        source = {"teacher.source": "live" if variant == "live" else "cache"}
        self.config, sections = common.load(args, source)
        self._workers, self._cuda = args.workers, args.device == "cuda"
        torch.manual_seed(0)
        student = build(MODELS, self.config.model, "model")
        student.init_weights()
        self._teacher_data = None
        if variant != "alone":
            self._teacher_data = teacher_data = prepare_teacher_data(self.config, sections)
            shards = list(next(iter(teacher_data.stream.passes.values())))
            teacher_data.stream.passes = {0: shards * -(-EPOCH // sum(map(len, shards)))}
            student = wrap_student(student, teacher_data, sections.distill)
            student.iteration = sections.distill.warmup_iters
        self._model = student.to(own_device()).train()
        if not self._cuda:
            self._model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-5)
        self._setting: Setting | None = None

    def prepare(self, setting: Setting) -> None:
        """Switch to the loader and precision of a setting."""
        import torch
        from mmengine.optim import AmpOptimWrapper, OptimWrapper

        if setting == self._setting:
            return
        self._setting = setting
        self._batches: Iterator[Any] = iter(())  # ends the workers of the previous setting
        loader = self._loader(setting.batch_size)
        self._prefetched = self._workers * (loader.prefetch_factor or 0)
        self._batches = iter(loader)
        self._kept = next(self._batches) if setting.batches == "synthetic" else None
        if self._kept is not None:
            self._batches = iter(())
        tf32 = setting.precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        if self._teacher_data is not None and hasattr(self._teacher_data.teacher, "teacher"):
            self._teacher_data.teacher.teacher._tf32 = tf32
        self._wrapper: Any = OptimWrapper(self._optimizer)
        if setting.precision == "amp":
            self._wrapper = AmpOptimWrapper(optimizer=self._optimizer, loss_scale="dynamic")

    def _loader(self, batch_size: int) -> Any:
        from mmengine.runner import Runner

        from pipeline.data.stream import LoaderOptions, Stream, stream_loader

        if self._teacher_data is not None:
            options = LoaderOptions(self._workers)
            return stream_loader(Stream(self._teacher_data.stream, batch_size, seed=0), options)
        endless = {"type": "InfiniteSampler", "shuffle": True}
        loading = {
            **self.config.train_dataloader,
            "batch_size": batch_size,
            "num_workers": self._workers,
            "persistent_workers": False,
            "sampler": endless,
        }
        return Runner.build_dataloader(loading, seed=0)

    def run(self, steps: int) -> Turn:
        """Run one warm-up step, then measure `steps` steps."""
        import torch

        synchronise: Callable[[], None] = torch.cuda.synchronize if self._cuda else lambda: None
        if self._kept is None:
            for _ in range(self._prefetched):
                next(self._batches)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._model.train_step(self._next(), self._wrapper)
        synchronise()
        waited, begun = 0.0, time.perf_counter()
        for _ in range(steps):
            start = time.perf_counter()
            batch = self._next()
            waited += time.perf_counter() - start
            self._model.train_step(batch, self._wrapper)
        synchronise()
        seconds = time.perf_counter() - begun
        if not self._cuda:
            return Turn(seconds, waited, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
        peak = torch.cuda.max_memory_allocated() / 1e6
        torch.cuda.empty_cache()  # three processes share the card
        return Turn(seconds, waited, peak)

    def _next(self) -> Any:
        return next(self._batches) if self._kept is None else self._kept


def child(pipe: Any, variant: str, args: argparse.Namespace) -> None:
    """Send the config's scales and batch size, then answer each (setting, steps) with a Turn. Send errors as text."""
    import torch
    from mmengine.registry import init_default_scope

    from pipeline.mmdet_compat.registry import cv2

    common.quiet()
    cv2.setNumThreads(0)
    init_default_scope("mmdet")
    if args.device == "cpu":
        torch.cuda.is_available = lambda: False
    try:
        trainer = Trainer(variant, args)
        pipe.send(common.setting(trainer.config))
        while (request := pipe.recv()) is not None:
            setting, steps = request
            trainer.prepare(setting)
            pipe.send(trainer.run(steps))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def receive(pipe: Any, variant: str) -> Any:
    """Return the next message of a child process. Exit if the child failed."""
    try:
        found = pipe.recv()
    except EOFError:
        found = "its process was killed"
    if isinstance(found, str):
        raise SystemExit(f"error: {variant}: {found}")
    return found


def measure(pipes: dict[str, Any], setting: Setting, args: argparse.Namespace) -> dict[str, list[Turn]]:
    """Measure all variants in a setting, and return their turns."""
    turns: dict[str, list[Turn]] = {variant: [] for variant in VARIANTS}
    for turn in range(args.turns + 1):
        for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
            pipes[variant].send((setting, args.steps))
            found = receive(pipes[variant], variant)
            if turn:  # the first turn warms up
                turns[variant].append(found)
    return turns


def summary(setting: Setting, turns: dict[str, list[Turn]], steps: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for every variant, and their ratios (medians over pairs of turns)."""
    rows: list[dict[str, Any]] = [
        {
            "variant": name,
            **setting._asdict(),
            "seconds_a_step": mean(t.seconds for t in found) / steps,
            "wait_share": sum(t.waited for t in found) / sum(t.seconds for t in found),
            "memory_mb": max(t.memory_mb for t in found),
            "steps": steps * len(found),
        }
        for name, found in turns.items()
    ]

    def median_ratio(one: str, other: str) -> float:
        return median(x.seconds / y.seconds for x, y in zip(turns[one], turns[other]))

    memory = {row["variant"]: row["memory_mb"] for row in rows}
    return rows, {
        **setting._asdict(),
        "cached_over_alone": median_ratio("cached", "alone"),
        "live_over_cached": median_ratio("live", "cached"),
        "memory_cached_over_alone": memory["cached"] / memory["alone"],
        "loader_wait_share": rows[-1]["wait_share"],
    }


def main() -> None:
    parser = common.parser(__doc__)
    common.add_config(parser)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--batches", nargs="+", choices=["loaded", "synthetic"], default=["loaded"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: the config's")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    args = parser.parse_args()
    if args.device == "cpu" and args.precisions != ["fp32"]:
        parser.error("--precisions: a CPU supports only fp32; remove the others or use --device cuda")
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for variant in VARIANTS:
        pipes[variant], child_pipe = context.Pipe()
        context.Process(target=child, args=(child_pipe, variant, args), daemon=False).start()
        child_pipe.close()  # otherwise recv() would wait forever for a killed child
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    try:
        given = {variant: receive(pipe, variant) for variant, pipe in pipes.items()}["alone"]
        sizes = args.batch_sizes or [given["batch_size"]]
        for setting in map(Setting._make, product(args.batches, sizes, args.precisions)):
            found, compared = summary(setting, measure(pipes, setting, args), args.steps)
            rows, ratios = [*rows, *found], [*ratios, compared]
            print(common.table(found, COLUMNS), common.table([compared], list(compared)), sep="\n", flush=True)
            common.write(args.json, rows, ratios=ratios, config=args.config, device=args.device, scales=given["scales"])
    finally:
        for pipe in pipes.values():
            with suppress(OSError):  # the child has failed
                pipe.send(None)


if __name__ == "__main__":
    main()
