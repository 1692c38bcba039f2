"""Train a student from the cache that stage 1 made; the teacher is neither built nor loaded.

python stage2_distill.py --config configs/demo/retinanet_r101_r50.py
"""

from __future__ import annotations

import argparse
import os

from pipeline import cli


def parse_args() -> argparse.Namespace:
    """mmdet's usual flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", help="where logs, checkpoints and summary.json go")
    parser.add_argument("--resume", nargs="?", const="auto", help="go on from the latest (or this) checkpoint")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision for the student")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size")
    cli.add_config(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))

    from mmengine.dist import is_main_process

    from pipeline.config import load_config
    from pipeline.distill.settings import apply_flags
    from pipeline.distill.train import train_student
    from pipeline.report import stage2_table

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    apply_flags(cfg, args.config, args.work_dir, args.resume, args.amp, args.auto_scale_lr, args.launcher)
    summary = train_student(cfg, sections)
    if is_main_process():
        cli.log(stage2_table(summary))


if __name__ == "__main__":
    cli.guarded(main)
