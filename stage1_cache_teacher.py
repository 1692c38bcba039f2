"""Run the teacher once over every view of the training images and leave its outputs in a verified cache.

python stage1_cache_teacher.py --config configs/demo/retinanet_r101_r50.py
torchrun --nproc-per-node 8 stage1_cache_teacher.py --config configs/coco/retinanet_r101_r50_2x.py
"""

from __future__ import annotations

import argparse
import os

from pipeline import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config(parser)
    args = parser.parse_args()

    from pipeline.caching import cache_teacher
    from pipeline.config import load_config
    from pipeline.report import stage1_table

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    summary = cache_teacher(cfg, sections, cli.log, cli.Bar())
    if os.environ.get("RANK", "0") == "0":
        cli.log(stage1_table(sections.cache.dir, summary))


if __name__ == "__main__":
    cli.guarded(main)
