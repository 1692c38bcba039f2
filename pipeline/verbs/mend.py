"""Verbs of a cache's health: verify (mmdet only where the teacher is asked) and repair. Exit code 2: not whole."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline import cli, terminal
from pipeline.errors import CacheError, CorruptCache, StaleCache
from pipeline.progress import Silent
from pipeline.stopping import GOES_ON
from pipeline.verbs.look import add_cache_json


def add_verify(parser: argparse.ArgumentParser) -> None:
    add_cache_json(parser)
    parser.add_argument("--deep", action="store_true", help="decode every sample as well")
    parser.add_argument("--config", metavar="C", help="with --deep: run its teacher on some views and compare")
    cli.add_options(parser)
    parser.add_argument("--views", type=cli.positive, default=16, metavar="N", help="how many (default: 16)")


def verify(args: argparse.Namespace) -> None:
    from pipeline.verify import findings

    if args.deep and args.config:
        _require(args)
    found = findings(args.cache, args.deep, Silent() if args.json else terminal.Bar())
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

    return load_config(args.config, {**cli.parse_options(args.cfg_options), "cache.dir": args.cache})


def _require(args: argparse.Namespace) -> None:
    """Refuse another config's cache before hours go into decoding it; what else is wrong with it `findings` tells."""
    from pipeline.caching.live import required

    try:
        required(*_config(args))
    except CacheError as error:
        if isinstance(error, StaleCache):
            raise


def _live(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.caching.live import compare_live

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


def repair(args: argparse.Namespace) -> None:
    from pipeline.caching.repair import repair
    from pipeline.config import load_config

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    done = repair(cfg, sections, terminal.log, terminal.Bar())
    terminal.log("\n".join(f"mended   {line}" for line in done) or "whole    nothing to repair")


VERIFY = cli.Command(
    "Read every byte of a cache and compare its digests; --deep decodes it as well.",
    "{prog} work_dirs/demo/cache\n{prog} work_dirs/demo/cache --deep --config configs/demo/retinanet_r101_r50.py",
    add_verify,
    verify,
)
REPAIR = cli.Command(
    "Compute again what is damaged in a cache, and only that.",
    "{prog} --config configs/demo/retinanet_r101_r50.py",
    cli.add_config,
    repair,
    GOES_ON,
)
