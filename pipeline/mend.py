"""The verbs `verify` and `repair`: their arguments, what they print, their exit codes (0 whole, 2 not)."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline import cli
from pipeline.errors import CorruptCache


class Silent:
    """The bar where JSON is asked for."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deep", action="store_true", help="decode every sample as well")
    parser.add_argument("--config", help="with --deep: run its teacher on some views and compare")
    parser.add_argument("--views", type=int, default=16, help="how many (default: 16)")


def run_verify(args: argparse.Namespace) -> None:
    from pipeline.verify import findings

    found = findings(args.cache, args.deep, Silent() if args.json else cli.Bar())
    if args.deep and args.config and found["whole"]:
        found["live"] = live = _live(args)
        found["bad"], found["whole"] = live["bad"], not live["bad"]
    if args.json:
        cli.log(json.dumps(found, indent=1))
    elif found["whole"]:
        cli.log(_told(found))
    if not found["whole"]:
        first, *more = found["bad"]
        raise CorruptCache(first + (f" (and {len(more)} more; --json lists them)" if more else ""))


def _live(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.caching.live import compare_live
    from pipeline.config import load_config

    return compare_live(*load_config(args.config, {"cache.dir": args.cache}), args.views)


def _told(found: dict[str, Any]) -> str:
    lines = [f"whole    {found['files']} files, {found['bytes'] / 1e6:.1f} MB"]
    if "decoded" in found:
        lines.append(f"decoded  {found['decoded']} views")
    if "live" in found:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in found["live"]["worst"].items())
        lines.append(f"live     {found['live']['views']} views; largest error over the codec's bound: {errors}")
    return "\n".join(lines)


def run_repair(args: argparse.Namespace) -> None:
    from pipeline.caching.repair import repair
    from pipeline.config import load_config

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    done = repair(cfg, sections, cli.log, cli.Bar())
    cli.log("\n".join(f"mended   {line}" for line in done) or "whole    nothing to repair")
