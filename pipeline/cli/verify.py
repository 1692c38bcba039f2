"""`verify`: check that a cache is intact. Imports mmdet only to run the teacher. Exit code 2: damaged."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_cache_json, add_options, parse_options, positive
from pipeline.cli.output import show, show_json
from pipeline.errors import ConfigError, CorruptCache
from pipeline.progress import Silent
from pipeline.text import one_line, one_line_each

VIEWS = 16  # that the teacher compares


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_cache_json(parser)
    parser.add_argument("--deep", action="store_true", help="also decode every sample")
    parser.add_argument(
        "--config",
        metavar="C",
        help="also check that this config made the cache; with --deep, run its teacher on some views and compare",
    )
    add_options(parser)
    parser.add_argument(
        "--views", type=positive, metavar="N", help=f"number of views that the teacher compares (default: {VIEWS})"
    )


def run_verify(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.integrity.verify import collect_findings

    if args.views and not (args.deep and args.config):
        raise ConfigError("--views: the teacher compares views only with --deep and --config C; add both")
    # The config is compared first: decoding all samples of another config's cache would take hours.
    passes = _compare_config(args) if args.config else 0
    log = partial(show, error=True)
    found = collect_findings(args.cache, args.deep, Silent() if args.json else terminal.Bar(), passes, log)
    if args.deep and args.config and found["whole"]:
        found["live"] = live = _compare_teacher(args)
        found["bad"], found["whole"] = live["bad"], not live["bad"]
    if args.json:
        show_json(found)
    elif found["whole"]:
        show(_format_findings(found, args.config))
    if not found["whole"]:
        first, *more = found["bad"]
        raise CorruptCache(first + (f" (and {len(more)} more; --json lists them)" if more else ""))


def _load_config(args: argparse.Namespace) -> Any:
    from pipeline.config import load_config

    return load_config(args.config, {**parse_options(args.cfg_options), "cache.dir": args.cache})


def _compare_config(args: argparse.Namespace) -> int:
    """Return the number of passes that the config makes. Raise StaleCache for a cache of another config."""
    from pipeline.integrity.compare_config import compare_config
    from pipeline.recipe import announce_inputs

    cfg, sections = _load_config(args)
    announce_inputs(cfg, sections, partial(show, error=True))
    return compare_config(cfg, sections, need_weights=args.deep)


def _compare_teacher(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.integrity.compare_teacher import compare_live

    cfg, sections = _load_config(args)
    return compare_live(cfg, sections, args.views or VIEWS)


def _format_findings(found: dict[str, Any], config: str | None) -> str:
    from pipeline.cache.completeness import describe_passes

    found = one_line_each(found)
    passes = describe_passes(found["passes"], found["expected_passes"])
    lines = [f"intact   {found['files']} files, {found['bytes'] / 1e6:.1f} MB, {passes}"]
    if config:
        lines.append(f"config   {one_line(config)} made this cache")
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
