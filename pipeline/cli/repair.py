"""`repair`: recompute the damaged files of a cache."""

from __future__ import annotations

import argparse

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_config, parse_options
from pipeline.cli.signals import RERUN_TO_RESUME


def run_repair(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.config import load_config
    from pipeline.integrity.repair import repair

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    repaired = repair(cfg, sections, terminal.log, terminal.Bar())
    terminal.log("\n".join(f"repaired {line}" for line in repaired) or "intact   nothing to repair")


REPAIR = Command(
    "Recompute the damaged files of a cache and keep all others.",
    "{prog} --config configs/demo/retinanet_r101_r50.py",
    add_config,
    run_repair,
    RERUN_TO_RESUME,
)
