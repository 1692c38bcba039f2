"""`info`: describe a cache. Imports neither torch nor mmdet."""

from __future__ import annotations

import argparse

from pipeline.cli.command import Command, add_cache_json
from pipeline.cli.output import show, show_json


def run_info(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.cache.inspect import describe
    from pipeline.cli.tables import info_table

    found = describe(args.cache)
    show_json(found) if args.json else show(info_table(found))


INFO = Command("Print a table of the content of a cache.", "{prog} work_dirs/demo/cache", add_cache_json, run_info)
