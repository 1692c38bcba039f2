"""Verbs that look at a cache: info, export. They import neither mmdet nor webdataset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline import cli


def add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", help="the cache's folder or URL")


def add_cache_json(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def info(args: argparse.Namespace) -> None:
    from pipeline.report import describe, info_table

    found = describe(args.cache)
    print(json.dumps(found, indent=1) if args.json else info_table(found))


def add_export(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)
    parser.add_argument("--image-id", type=int, required=True, metavar="I", help="as in the annotation file")
    parser.add_argument("--view", type=int, default=0, metavar="V", help="number of the view (default: 0)")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the files")


def export(args: argparse.Namespace) -> None:
    from pipeline.export import export_view
    from pipeline.report import export_table

    print(export_table(Path(args.out), export_view(args.cache, args.image_id, args.view, Path(args.out))))


INFO = cli.Command("What a cache holds, in a table.", "{prog} work_dirs/demo/cache", add_cache_json, info)
EXPORT = cli.Command(
    "Write one view's features, scores and FRS map as .npy and .png.",
    "{prog} work_dirs/demo/cache --image-id 1000004 --view 0 -o work_dirs/demo/export",
    add_export,
    export,
)
