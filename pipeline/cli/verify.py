"""`verify`: is a cache whole? mmdet is imported only where the teacher is asked. Exit code 2: not whole."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_cache_json, add_options, parse_options, positive
from pipeline.errors import CacheError, CorruptCache, StaleCache
from pipeline.progress import Silent


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_cache_json(parser)
    parser.add_argument("--deep", action="store_true", help="decode every sample as well")
    parser.add_argument("--config", metavar="C", help="with --deep: run its teacher on some views and compare")
    add_options(parser)
    parser.add_argument("--views", type=positive, default=16, metavar="N", help="how many (default: 16)")


def run_verify(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.integrity.verify import collect_findings

    if args.deep and args.config:
        _require(args)
    found = collect_findings(args.cache, args.deep, Silent() if args.json else terminal.Bar())
    if args.deep and args.config and found["whole"]:
        found["live"] = live = _live(args)
        found["bad"], found["whole"] = live["bad"], not live["bad"]
    if args.json:
        print(json.dumps(found, indent=1))
    elif found["whole"]:
        print(_told(found))
    if not found["whole"]:
        first, *more = found["bad"]
        raise CorruptCache(first + (f" (and {len(more)} more; --json lists them)" if more else ""))


def _config(args: argparse.Namespace) -> Any:
    from pipeline.config import load_config

    return load_config(args.config, {**parse_options(args.cfg_options), "cache.dir": args.cache})


def _require(args: argparse.Namespace) -> None:
    """Raise StaleCache for another config's cache before hours go into decoding; other errors are reported later."""
    from pipeline.integrity.compare_teacher import open_required

    try:
        open_required(*_config(args))
    except CacheError as error:
        if isinstance(error, StaleCache):
            raise


def _live(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.integrity.compare_teacher import compare_live

    cfg, sections = _config(args)
    return compare_live(cfg, sections, args.views)


def _told(found: dict[str, Any]) -> str:
    lines = [f"whole    {found['files']} files, {found['bytes'] / 1e6:.1f} MB"]
    if "decoded" in found:
        lines.append(f"decoded  {found['decoded']} views")
    if "live" in found:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in found["live"]["worst"].items())
        lines.append(f"live     {found['live']['views']} views; largest error over the codec's bound: {errors}")
    return "\n".join(lines)


VERIFY = Command(
    "Read every byte of a cache and compare its digests; --deep decodes it as well.",
    "{prog} work_dirs/demo/cache\n{prog} work_dirs/demo/cache --deep --config configs/demo/retinanet_r101_r50.py",
    add_verify,
    run_verify,
)
