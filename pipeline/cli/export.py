"""`export`: write one view of a cache as files. Imports neither mmdet nor webdataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.command import Command, add_cache
from pipeline.cli.output import show


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    add_cache(parser)
    parser.add_argument("--image-id", type=int, required=True, metavar="I", help="image id in the annotation file")
    parser.add_argument("--view", type=int, default=0, metavar="V", help="number of the view (default: 0)")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the files")


def run_export(args: argparse.Namespace) -> None:
    """Run the verb."""
    from pipeline.cli.tables import export_table
    from pipeline.tools.export import export_view

    show(export_table(Path(args.out), export_view(args.cache, args.image_id, args.view, Path(args.out))))


EXPORT = Command(
    "Write one view's features, scores and FRS map as .npy and .png.",
    "{prog} work_dirs/demo/cache --image-id 1000004 --view 0 -o work_dirs/demo/export",
    add_export,
    run_export,
)
