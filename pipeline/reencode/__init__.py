"""Another quality or profile of a cache, without running the teacher over the data set again.

From a lossless source the result is what stage 1 would have written, byte for byte, on the same device, precision and
number of threads a process. From a coded source both codecs' errors add up, and the calibration measures their sum.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from pipeline.cache.cache import Cache, load_pass_plan, pass_folder
from pipeline.cache.files import digest, discard, read_json, write_json, write_report
from pipeline.cache.lease import Claims, claims, work_under
from pipeline.cache.lock import locked
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.place import Place, place, require_writable
from pipeline.cache.plan import ShardPlan
from pipeline.caching import check_existing, summarise
from pipeline.codec import codec_settings
from pipeline.errors import CacheError, ConfigError
from pipeline.progress import Log, Progress
from pipeline.reencode.calibration import calibrate_like, calibrate_with
from pipeline.reencode.stored import Recoder
from pipeline.teacher import own_device
from pipeline.verify import verify

Task = tuple[int, int, ShardPlan]  # pass, shard, what it holds


def reencode(
    source: str, target: str, codec: dict[str, Any], config: str | None, options: dict[str, Any], like: str | None,
    jobs: int | None, log: Log, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Make, or complete, the cache `target`; `codec`: as `cache.codec` of a config. Returns its summary.

    Raises ConfigError where neither config nor like says how the codec is calibrated, and what stage 1 raises.
    """
    begun, old, root = time.perf_counter(), Cache(source), place(target)
    require_writable(root)
    if not old.passes():
        raise CacheError(f"{old.root}: no complete pass; run stage 1")
    settings = Cache(like).recipe["codec"] if like and not codec.keys() - {"type"} else codec_settings(codec)
    if settings.get("scores", True) and not old.recipe["codec"].get("scores", True):
        raise ConfigError(f"{old.root}: holds no class scores, so no cache with scores can be made of it; --no-scores")
    recipe = {**old.recipe, "codec": settings}
    plan = {**old.plan, "recipe": recipe, "recipe_digest": digest(recipe)}
    check_existing(root, plan, "name another folder")
    if config is None and like is None and not (root / "codec.json").exists():
        raise ConfigError(
            f"{root}: expected --config (the codec's steps are measured on a probe made of the teacher: its weights "
            "and the calibration views are needed, the rest comes from the cache) or --like (a cache of this recipe)"
        )
    if like is not None and not (root / "codec.json").exists():
        # Before a plan.json says what this folder is.
        Cache(like).require(recipe, plan["teacher_sha256"], "expected a cache of the same teacher and data")
    with locked(root):
        write_json(root / "gate.json", read_json(old.root / "gate.json"))
        write_json(root / "plan.json", plan)
        if not (root / "codec.json").exists():
            if like is not None:
                calibrate_like(Cache(like), plan, root)
            else:
                assert config is not None
                calibrate_with(config, options, old, plan, root, log, progress)
        computed = sum(recode_pass(old, root, number, jobs, progress) for number in old.passes())
        checked = verify(root)
        log(f"verified {checked['files']} files, {checked['bytes'] / 1e6:.1f} MB")
        summary = summarise(root, computed, time.perf_counter() - begun)
        write_report(root / "summary.json", summary)
    return summary


def recode_pass(old: Cache, root: Place, number: int, jobs: int | None, progress: Progress) -> int:
    """What is missing of one pass. Returns how many views that was."""
    folder, manifest, new = pass_folder(root, number), old.manifest(number), Cache(root)
    left_out = {image for image, _ in manifest["quarantine"]}
    old.references(number)  # checks the source's plan
    write_json(folder / "plan.json", read_json(pass_folder(old.root, number) / "plan.json"))
    if left_out:
        write_json(folder / "quarantine.json", {"images": manifest["quarantine"]})
    shards = [shard.without(left_out) for shard in load_pass_plan(root, number)]
    missing = [
        (number, n, shard)
        for n, shard in enumerate(shards)
        if not shard_done(root, number, n, new.plan_digest, new.codec_digest, [s[:2] for s in shard.samples])
    ]
    if missing:
        discard(folder / "manifest.json")
        progress.start(f"pass {number}", sum(len(shard.samples) for _, _, shard in missing))
        try:
            for views, size in recoded(old.root, root, missing, jobs):
                progress.advance(views, size)
        finally:
            progress.stop()
    if not (folder / "manifest.json").exists():
        write_manifest(root, number, new.plan_digest, len(shards), manifest["raw_fp16_bytes"],
                       manifest["quarantine"], manifest["environment"])  # fmt: skip
    return sum(len(shard.samples) for _, _, shard in missing)


def recoded(source: Place, target: Place, tasks: list[Task], jobs: int | None) -> Iterator[tuple[int, int]]:
    """Write shards, in worker processes where there are several and no GPU; yields (views, bytes) of each."""
    device = own_device()
    jobs = min(jobs or (1 if device.type == "cuda" else os.cpu_count() or 1), len(tasks))
    if jobs == 1:
        recoder = Recoder(source, target, device)
        yield from (recoder.shard(*task) for task in tasks)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (source, target, threads, claims())) as pool:
        futures = [pool.submit(_shard, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise CacheError(
                f"{target}: a worker process was killed (out of memory?); what was committed is kept: the same command "
                "goes on from there, perhaps with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # and wait: behind us the lock is freed


_RECODER: list[Recoder] = []  # of this worker process


def _begin(source: Place, target: Place, threads: int, held: Claims) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers too; their parent ends them
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    work_under(held)
    _RECODER.append(Recoder(source, target, torch.device("cpu")))


def _end_with(parent: Any) -> None:
    """An idle worker would wait for a parent that was killed for ever."""
    parent.join()
    os._exit(1)


def _shard(task: Task) -> tuple[int, int]:
    return _RECODER[0].shard(*task)
