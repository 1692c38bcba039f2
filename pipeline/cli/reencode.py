"""`reencode`: make a cache of another quality or profile from an existing cache."""

from __future__ import annotations

import argparse

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_options, parse_options, positive
from pipeline.cli.signals import RERUN_TO_RESUME
from pipeline.codecs.frs.settings import PROFILES


def add_reencode(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("source", help="existing cache, preferably lossless")
    parser.add_argument("target", help="folder of the new cache")
    parser.add_argument(
        "--codec",
        choices=("frs2", "frs", "lossless"),
        help="codec of the new cache (default: frs2, or that of --like)",
    )
    parser.add_argument("--quality", metavar="Q", help="high, balanced, small or a fraction (default: balanced)")
    parser.add_argument("--profile", choices=PROFILES, help="losses that the codec serves (default: frs)")
    parser.add_argument("--no-scores", action="store_true", help="leave out the class scores")
    parser.add_argument("--boxes", action="store_true", help="also store the box distributions of the source")
    parser.add_argument(
        "--config", metavar="C", help="config of the source: calibrate the codec with the teacher's weights"
    )
    add_options(parser)
    parser.add_argument("--like", metavar="CACHE", help="copy the codec of this cache instead; needs no teacher")
    parser.add_argument("--jobs", type=positive, metavar="N", help="worker processes (default: one per core)")


def run_reencode(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.cli.tables import stage1_table
    from pipeline.tools.reencode.run import reencode

    quality = args.quality
    if quality is not None and quality.replace(".", "", 1).isdigit():
        quality = float(quality)
    given = {"type": args.codec, "quality": quality, "profile": args.profile}
    codec = {key: value for key, value in given.items() if value is not None}
    codec |= ({"scores": False} if args.no_scores else {}) | ({"boxes": True} if args.boxes else {})
    options = parse_options(args.cfg_options)
    summary = reencode(
        args.source,
        args.target,
        codec,
        args.config,
        options,
        args.like,
        args.jobs,
        terminal.log,
        terminal.Bar(),
    )
    terminal.log(stage1_table(args.target, summary))


REENCODE = Command(
    "Make a cache of another quality or profile without running the teacher over the data set again.",
    "{prog} work_dirs/demo/lossless work_dirs/demo/small --quality small \\\n"
    "    --config configs/demo/retinanet_r101_r50.py\n"
    "{prog} work_dirs/demo/lossless work_dirs/demo/again --like work_dirs/demo/small",
    add_reencode,
    run_reencode,
    RERUN_TO_RESUME,
)
