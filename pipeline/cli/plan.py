"""`plan`: forecast the size and the duration of a cache before it is made."""

from __future__ import annotations

import argparse
import time
from functools import partial

from pipeline.cli import terminal
from pipeline.cli.command import STARTED, Command, add_config, parse_options, positive
from pipeline.cli.output import show, show_json


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_config(parser)
    parser.add_argument("--samples", type=positive, default=96, metavar="N", help="images to measure (default: 96)")
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="approximate duration in seconds (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_plan(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.cli.tables import forecast_table
    from pipeline.config import load_config
    from pipeline.errors import CacheError
    from pipeline.tools.forecast.run import fits_on_disk, forecast

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    seconds = max(1.0, args.seconds - (time.perf_counter() - STARTED))  # the import of mmdet takes several seconds
    log = partial(show, error=args.json)
    found = forecast(cfg, sections, log, terminal.Bar(stderr=args.json), args.samples, seconds)
    show_json(found) if args.json else show(forecast_table(found))
    if not fits_on_disk(found):
        raise CacheError(
            f"{found['cache']}: {found['warnings'][0]}; free disk space, or change cache.dir or cache.codec.quality"
        )


PLAN = Command(
    "Forecast a cache before it is made: bytes, hours, disk space, and the epoch from which it saves time.",
    "{prog} --config configs/demo/retinanet_r101_r50.py\n"
    "{prog} --config configs/demo/retinanet_r101_r50.py --json \\\n"
    "    --cfg-options cache.codec.quality=small cache.dir=work_dirs/demo/small",
    add_plan,
    run_plan,
)
