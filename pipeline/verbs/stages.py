"""The two stages as commands: `stage1_cache_teacher.py`, `stage2_distill.py`, `python -m pipeline stage1 | stage2`."""

from __future__ import annotations

import argparse
import os

from pipeline import cli, terminal
from pipeline.stopping import GOES_ON, RESUMES

LOCAL_RANKS = {"slurm": "SLURM_LOCALID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}


def add_stage1(parser: argparse.ArgumentParser) -> None:
    cli.add_config(parser)
    parser.add_argument("--log-file", metavar="FILE", help="one line a shard goes here (default: <cache.dir>.log)")


def run_stage1(args: argparse.Namespace) -> None:
    from pathlib import Path

    from pipeline.caching import cache_teacher
    from pipeline.config import load_config
    from pipeline.report import stage1_table

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    terminal.keep_log(Path(args.log_file)) if args.log_file else terminal.keep_log_beside(sections.cache.dir)
    summary = cache_teacher(cfg, sections, terminal.log, terminal.Bar())
    if os.environ.get("RANK", "0") == "0":
        terminal.log(stage1_table(sections.cache.dir, summary))


def add_stage2(parser: argparse.ArgumentParser) -> None:
    """mmdet's usual flags."""
    cli.add_config(parser)
    parser.add_argument("--work-dir", metavar="DIR", help="where logs, checkpoints and summary.json go")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="FILE",
                        help="go on from the latest (or this) checkpoint")  # fmt: skip
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision for the student")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"],
                        help="default: pytorch under torchrun, none elsewhere")  # fmt: skip
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def run_stage2(args: argparse.Namespace) -> None:
    # Ranks that do not know of each other would train as many students in one work dir.
    launcher = args.launcher or ("pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "none")
    os.environ.setdefault("LOCAL_RANK", os.environ.get(LOCAL_RANKS.get(launcher, ""), str(args.local_rank)))

    from mmengine.dist import is_main_process

    from pipeline.config import load_config
    from pipeline.distill.settings import apply_flags
    from pipeline.distill.train import train_student
    from pipeline.report import stage2_table

    cfg, sections = load_config(args.config, cli.parse_options(args.cfg_options))
    apply_flags(cfg, args.config, args.work_dir, args.resume, args.amp, args.auto_scale_lr, launcher)
    summary = train_student(cfg, sections)
    if is_main_process():
        terminal.log(stage2_table(summary))


STAGE1 = cli.Command(
    "Run the teacher once over every view of the training images and leave its outputs in a verified cache.",
    "{prog} --config configs/demo/retinanet_r101_r50.py\n"
    "torchrun --nproc-per-node 8 -m pipeline stage1 --config configs/coco/retinanet_r101_r50_2x.py",
    add_stage1,
    run_stage1,
    GOES_ON,
)
STAGE2 = cli.Command(
    "Train a student from the cache that stage 1 made; the teacher is neither built nor loaded.",
    "{prog} --config configs/demo/retinanet_r101_r50.py --work-dir work_dirs/r50\n"
    "torchrun --nproc-per-node 8 -m pipeline stage2 --config ... --launcher pytorch",
    add_stage2,
    run_stage2,
    RESUMES,
)
