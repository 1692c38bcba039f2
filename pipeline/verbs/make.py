"""Verbs that make something of a config or a cache: plan, report, reencode."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline import cli, terminal
from pipeline.stopping import GOES_ON
from pipeline.verbs.look import add_cache


def add_reencode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a cache; best a lossless one")
    parser.add_argument("target", help="folder of the new cache")
    parser.add_argument("--quality", metavar="Q", help="high, balanced, small or a fraction (default: balanced)")
    parser.add_argument("--profile", choices=["frs", "universal"], help="losses to serve (default: frs)")
    parser.add_argument("--no-scores", action="store_true", help="leave out the class scores")
    parser.add_argument(
        "--config", metavar="C", help="of the source: calibrate as stage 1 does, with the teacher's weights"
    )
    cli.add_options(parser)
    parser.add_argument("--like", metavar="CACHE", help="instead: take the codec of this cache; needs no teacher")
    parser.add_argument("--jobs", type=cli.positive, metavar="N", help="worker processes (default: one a core)")


def reencode(args: argparse.Namespace) -> None:
    from pipeline.reencode import reencode
    from pipeline.report import stage1_table

    quality = args.quality
    if quality is not None and quality.replace(".", "", 1).isdigit():
        quality = float(quality)
    asked = {key: value for key, value in (("quality", quality), ("profile", args.profile)) if value is not None}
    asked |= {"scores": False} if args.no_scores else {}
    options = cli.parse_options(args.cfg_options)
    summary = reencode(args.source, args.target, {"type": "frs", **asked}, args.config, options, args.like, args.jobs,
                       terminal.log, terminal.Bar())  # fmt: skip
    terminal.log(stage1_table(args.target, summary))


def add_plan(parser: argparse.ArgumentParser) -> None:
    cli.add_config(parser)
    parser.add_argument(
        "--samples", type=cli.positive, default=96, metavar="N", help="images to measure on (default: 96)"
    )
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="about how long to take (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def plan(args: argparse.Namespace) -> None:
    from pipeline.config import load_config
    from pipeline.errors import CacheError
    from pipeline.forecast import fits, forecast
    from pipeline.report import forecast_table

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    seconds = args.seconds - (time.perf_counter() - cli.STARTED)  # importing mmdet takes some
    quiet = (lambda text: print(text, file=sys.stderr)) if args.json else print
    found = forecast(cfg, sections, quiet, terminal.Bar(stderr=args.json), args.samples, seconds)
    print(json.dumps(found, indent=1) if args.json else forecast_table(found))
    if not fits(found):
        raise CacheError(
            f"{found['cache']}: {found['warnings'][0]}; free some, or set cache.dir or cache.codec.quality"
        )


def add_report(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the page, as report.html")
    parser.add_argument("--config", metavar="C", help="of the cache: brings images, and errors of single views")
    cli.add_options(parser)
    parser.add_argument("--students", nargs="+", action="extend", default=[], metavar="DIR", help="their work dirs")
    parser.add_argument("--compare", nargs="+", action="extend", default=[], metavar="CACHE",
                        help="caches of the same teacher, for the curve of bytes against error")  # fmt: skip
    parser.add_argument(
        "--samples", type=cli.positive, default=24, metavar="N", help="views to look into (default: 24)"
    )


def report(args: argparse.Namespace) -> None:
    from pipeline.page import write_page

    options = cli.parse_options(args.cfg_options)
    page = write_page(args.cache, Path(args.out), args.config, options, args.students, args.compare, args.samples)
    print(f"{page}, {page.stat().st_size / 1e6:.1f} MB")


PLAN = cli.Command(
    "What a cache will take before you make it: bytes, hours, disk, and when it pays.",
    "{prog} --config configs/demo/retinanet_r101_r50.py\n"
    "{prog} --config configs/demo/retinanet_r101_r50.py --json \\\n"
    "    --cfg-options cache.codec.quality=small cache.dir=work_dirs/demo/small",
    add_plan,
    plan,
)
REPORT = cli.Command(
    "One HTML page about a cache: maps over images, where the bits go, errors, students.",
    "{prog} work_dirs/demo/cache -o work_dirs/demo/report.html \\\n"
    "    --config configs/demo/retinanet_r101_r50.py --students work_dirs/demo/retinanet_r50",
    add_report,
    report,
)
REENCODE = cli.Command(
    "Another quality or profile of a cache; the teacher does not run over the data set again.",
    "{prog} work_dirs/demo/lossless work_dirs/demo/small --quality small \\\n"
    "    --config configs/demo/retinanet_r101_r50.py\n"
    "{prog} work_dirs/demo/lossless work_dirs/demo/again --like work_dirs/demo/small",
    add_reencode,
    reencode,
    GOES_ON,
)
