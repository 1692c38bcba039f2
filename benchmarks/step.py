"""A training step of the student alone, with the teacher in the loop, and from the cache: seconds and memory.

python benchmarks/step.py --json docs/results/step.json                      # the demo's thin detectors, CPU
python benchmarks/step.py --config configs/coco/retinanet_r101_r50_2x.py --device cuda --workers 8 ...

Each variant is a process of its own with its own data loading; they take turns, a few steps each, so that noise of the
machine meets all alike. `alone` is plain mmdet: its own DataLoader and detector. Data loading is timed as the wait for
the next batch; what the workers have read ahead while the others had their turn is thrown away first, and one step
made, so that a loader which cannot keep up is seen. With --synthetic one batch is loaded and used again: compute alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report

VARIANTS = ("alone", "live", "cached")
COLUMNS = ["variant", "batches", "seconds_a_step", "wait_share", "memory_mb", "steps"]


def forever(loader: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(epoch)
        yield from loader
        epoch += 1


def trainer(variant: str, config: str, options: dict[str, Any], workers: int) -> tuple[Any, Any]:
    """(model, loader) of one variant, as stage 2 or mmdet's own tools would build them."""
    import torch
    from mmengine.runner import Runner

    from pipeline.config import load_config
    from pipeline.distill.distiller import Distiller
    from pipeline.distill.lesson import prepare_lesson
    from pipeline.mm import MODELS, build
    from pipeline.stream import Stream, stream_loader
    from pipeline.teacher import own_device

    source = {"teacher.source": "live" if variant == "live" else "cache"}
    cfg, sections = load_config(config, {**options, **source})
    torch.manual_seed(0)
    student = build(MODELS, cfg.model, "model")
    student.init_weights()
    if variant == "alone":
        loading = {**cfg.train_dataloader, "num_workers": workers, "persistent_workers": workers > 0}
        return student.to(own_device()), Runner.build_dataloader(loading, seed=0)
    lesson = prepare_lesson(cfg, sections)
    model = Distiller(
        student, lesson.teacher, sections.distill, lesson.levels, lesson.channels, lesson.score_channels
    )  # fmt: skip
    model.iteration = sections.distill.warmup_iters
    stream = Stream(lesson.stream, cfg.train_dataloader.batch_size, seed=0)
    return model.to(own_device()), stream_loader(stream, workers)


def child(pipe: Any, variant: str, args: argparse.Namespace) -> None:
    """Answers each number of steps with (seconds, seconds of waiting for data, peak memory in MB)."""
    import torch
    from mmengine.optim import OptimWrapper
    from mmengine.registry import init_default_scope

    from pipeline.cli import parse_options
    from pipeline.mm import cv2

    report.quiet()
    cv2.setNumThreads(0)
    init_default_scope("mmdet")
    if args.device == "cpu":
        torch.cuda.is_available = lambda: False
    model, loader = trainer(variant, args.config, parse_options(args.options), args.workers)
    if args.device == "cpu":
        model.to(memory_format=torch.channels_last)
    wrapper = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5))
    model.train()
    batches = forever(loader)
    kept = next(batches) if args.synthetic else None
    synchronise: Callable[[], None] = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    while (steps := pipe.recv()) is not None:
        for _ in range(0 if args.synthetic else args.workers * (loader.prefetch_factor or 0)):
            next(batches)
        model.train_step(kept or next(batches), wrapper)
        synchronise()
        waited, begun = 0.0, time.perf_counter()
        for _ in range(steps):
            start = time.perf_counter()
            batch = kept if args.synthetic else next(batches)
            waited += time.perf_counter() - start
            model.train_step(batch, wrapper)
        synchronise()
        peak = torch.cuda.max_memory_allocated() / 1e6 if args.device == "cuda" else rss()
        pipe.send((time.perf_counter() - begun, waited, peak))


def setting(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.cli import parse_options
    from pipeline.config import load_config

    return report.setting(load_config(args.config, parse_options(args.options))[0])


def rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--config", default="configs/demo/retinanet_r101_r50.py")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="config values, cache.dir say")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--synthetic", action="store_true")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for variant in VARIANTS:
        pipes[variant], far = context.Pipe()
        context.Process(target=child, args=(far, variant, args)).start()
        far.close()  # or a child that dies would leave this side waiting
    turns: dict[str, list[Any]] = {variant: [] for variant in VARIANTS}
    for turn in range(args.turns + 1):
        for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
            pipes[variant].send(args.steps)
            found = pipes[variant].recv()
            if turn:  # the first turn warms up
                turns[variant].append(found)
    for pipe in pipes.values():
        pipe.send(None)
    seconds = {name: [turn[0] / args.steps for turn in found] for name, found in turns.items()}
    paired = lambda a, b: median(x / y for x, y in zip(seconds[a], seconds[b]))  # noqa: E731
    memory = {name: max(turn[2] for turn in found) for name, found in turns.items()}
    rows = [
        {"variant": name, "batches": "synthetic" if args.synthetic else "loaded", "seconds_a_step": mean(seconds[name]),
         "wait_share": sum(t[1] for t in found) / sum(t[0] for t in found), "memory_mb": memory[name],
         "steps": args.steps * len(found)}
        for name, found in turns.items()
    ]  # fmt: skip
    ratios = {
        "cached_over_alone": paired("cached", "alone"), "live_over_cached": paired("live", "cached"),
        "memory_cached_over_alone": memory["cached"] / memory["alone"],
        "loader_wait_share": rows[-1]["wait_share"],
    }  # fmt: skip
    print(report.table(rows, COLUMNS))
    print(report.table([ratios], list(ratios)))
    report.write(args.json, rows, **ratios, config=args.config, device=args.device, **setting(args))


if __name__ == "__main__":
    main()
