"""`stage1` and the script stage1_cache_teacher.py."""

from __future__ import annotations

import argparse
import os

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_config, parse_options
from pipeline.cli.signals import RERUN_TO_RESUME


def add_stage1(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_config(parser)
    parser.add_argument(
        "--log-file", metavar="FILE", help="log file with one line for each shard (default: <cache.dir>.log)"
    )


def run_stage1(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pathlib import Path

    from pipeline.cli.tables import stage1_table
    from pipeline.config import load_config
    from pipeline.stage1.run import cache_teacher

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    terminal.keep_log(Path(args.log_file)) if args.log_file else terminal.keep_log_beside(sections.cache.dir)
    summary = cache_teacher(cfg, sections, terminal.log, terminal.Bar())
    if os.environ.get("RANK", "0") == "0":
        terminal.log(stage1_table(sections.cache.dir, summary))


STAGE1 = Command(
    "Run the teacher once over every view of the training images and write its outputs to a verified cache.",
    "{prog} --config configs/demo/retinanet_r101_r50.py\n"
    "torchrun --nproc-per-node 8 -m pipeline stage1 --config configs/coco/retinanet_r101_r50_2x.py",
    add_stage1,
    run_stage1,
    RERUN_TO_RESUME,
)
