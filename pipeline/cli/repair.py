"""`repair`: compute again what is damaged in a cache, and only that."""

from __future__ import annotations

import argparse

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_config, parse_options
from pipeline.cli.signals import GOES_ON


def run_repair(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.config import load_config
    from pipeline.integrity.repair import repair

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    done = repair(cfg, sections, terminal.log, terminal.Bar())
    terminal.log("\n".join(f"mended   {line}" for line in done) or "whole    nothing to repair")


REPAIR = Command(
    "Compute again what is damaged in a cache, and only that.",
    "{prog} --config configs/demo/retinanet_r101_r50.py",
    add_config,
    run_repair,
    GOES_ON,
)
