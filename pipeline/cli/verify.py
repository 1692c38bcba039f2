"""`verify`: check that a cache is intact. Imports mmdet only to run the teacher. Exit code 2: damaged."""

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
    parser.add_argument("--deep", action="store_true", help="also decode every sample")
    parser.add_argument(
        "--config", metavar="C", help="with --deep: run the teacher of this config on some views and compare"
    )
    add_options(parser)
    parser.add_argument(
        "--views", type=positive, default=16, metavar="N", help="number of views to compare (default: 16)"
    )


def run_verify(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.integrity.verify import collect_findings

    if args.deep and args.config:
        _check_config(args)
    found = collect_findings(args.cache, args.deep, Silent() if args.json else terminal.Bar())
    if args.deep and args.config and found["whole"]:
        found["live"] = live = _compare_teacher(args)
        found["bad"], found["whole"] = live["bad"], not live["bad"]
    if args.json:
        print(json.dumps(found, indent=1))
    elif found["whole"]:
        print(_format_findings(found))
    if not found["whole"]:
        first, *more = found["bad"]
        raise CorruptCache(first + (f" (and {len(more)} more; --json lists them)" if more else ""))


def _load_config(args: argparse.Namespace) -> Any:
    from pipeline.config import load_config

    return load_config(args.config, {**parse_options(args.cfg_options), "cache.dir": args.cache})


def _check_config(args: argparse.Namespace) -> None:
    """Raise StaleCache for a cache of another config before hours of decoding. Other errors are reported later."""
    from pipeline.integrity.compare_teacher import open_required

    try:
        open_required(*_load_config(args))
    except CacheError as error:
        if isinstance(error, StaleCache):
            raise


def _compare_teacher(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.integrity.compare_teacher import compare_live

    cfg, sections = _load_config(args)
    return compare_live(cfg, sections, args.views)


def _format_findings(found: dict[str, Any]) -> str:
    lines = [f"intact   {found['files']} files, {found['bytes'] / 1e6:.1f} MB"]
    if "decoded" in found:
        lines.append(f"decoded  {found['decoded']} views")
    if "live" in found:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in found["live"]["worst"].items())
        lines.append(
            f"live     {found['live']['views']} views compared; largest error divided by the codec's bound: {errors}"
        )
    return "\n".join(lines)


VERIFY = Command(
    "Read every byte of a cache and compare its digests; --deep also decodes every sample.",
    "{prog} work_dirs/demo/cache\n{prog} work_dirs/demo/cache --deep --config configs/demo/retinanet_r101_r50.py",
    add_verify,
    run_verify,
)
