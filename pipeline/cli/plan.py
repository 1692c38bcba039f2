"""`plan`: what a cache will take before it is made."""

from __future__ import annotations

import argparse
import json
import sys
import time

from pipeline.cli import terminal
from pipeline.cli.command import STARTED, Command, add_config, parse_options, positive


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_config(parser)
    parser.add_argument("--samples", type=positive, default=96, metavar="N", help="images to measure on (default: 96)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="about how long to take (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_plan(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.cli.tables import forecast_table
    from pipeline.config import load_config
    from pipeline.errors import CacheError
    from pipeline.tools.forecast.run import fits, forecast

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    seconds = args.seconds - (time.perf_counter() - STARTED)  # importing mmdet takes some
    quiet = (lambda text: print(text, file=sys.stderr)) if args.json else print
    found = forecast(cfg, sections, quiet, terminal.Bar(stderr=args.json), args.samples, seconds)
    print(json.dumps(found, indent=1) if args.json else forecast_table(found))
    if not fits(found):
        raise CacheError(
            f"{found['cache']}: {found['warnings'][0]}; free some, or set cache.dir or cache.codec.quality"
        )


PLAN = Command(
    "What a cache will take before you make it: bytes, hours, disk, and when it pays.",
    "{prog} --config configs/demo/retinanet_r101_r50.py\n"
    "{prog} --config configs/demo/retinanet_r101_r50.py --json \\\n"
    "    --cfg-options cache.codec.quality=small cache.dir=work_dirs/demo/small",
    add_plan,
    run_plan,
)
