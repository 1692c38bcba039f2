"""`report`: write an HTML page about a cache."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pipeline.cli.command import Command, add_cache, add_options, parse_options, positive
from pipeline.cli.output import show


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_cache(parser)
    parser.add_argument(
        "-o", "--out", required=True, metavar="FILE", help="HTML file to write, for example report.html"
    )
    parser.add_argument(
        "--config", metavar="C", help="config of the cache: adds the images and the errors of single views"
    )
    add_options(parser)
    parser.add_argument(
        "--students", nargs="+", action="extend", default=[], metavar="DIR", help="work dirs of students"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="CACHE",
        help="caches of the same teacher, for the curve of bytes against error",
    )
    parser.add_argument("--samples", type=positive, default=24, metavar="N", help="views to decode (default: 24)")


def run_report(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.tools.report.page import write_page

    options = parse_options(args.cfg_options)
    out, log = Path(args.out), partial(show, error=True)
    page = write_page(args.cache, out, args.config, options, args.students, args.compare, args.samples, log)
    show(f"{page}, {page.stat().st_size / 1e6:.1f} MB")


REPORT = Command(
    "Write an HTML page about a cache: FRS maps over images, sizes, errors, students.",
    "{prog} work_dirs/demo/cache -o work_dirs/demo/report.html \\\n"
    "    --config configs/demo/retinanet_r101_r50.py --students work_dirs/demo/retinanet_r50",
    add_report,
    run_report,
)
