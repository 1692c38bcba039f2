"""`stage2` and the script stage2_distill.py."""

from __future__ import annotations

import argparse
import os

from pipeline.cli import terminal
from pipeline.cli.command import Command, add_config, parse_options
from pipeline.cli.signals import RERUN_WITH_RESUME

LOCAL_RANKS = {"slurm": "SLURM_LOCALID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}


def add_stage2(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb, as in mmdet."""
    add_config(parser)
    parser.add_argument("--work-dir", metavar="DIR", help="folder for logs, checkpoints and summary.json")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="FILE", help="resume from the latest checkpoint, or from FILE"
    )
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision for the student")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        help="default: pytorch under torchrun, none elsewhere",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def run_stage2(args: argparse.Namespace) -> None:
    """Run the verb."""
    # Without a launcher, each rank would train a separate student in the same work dir.
    launcher = args.launcher or ("pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "none")
    os.environ.setdefault("LOCAL_RANK", os.environ.get(LOCAL_RANKS.get(launcher, ""), str(args.local_rank)))

    from pipeline.cli.tables import stage2_table
    from pipeline.config import load_config
    from pipeline.stage2.settings import apply_flags
    from pipeline.stage2.train import train_student

    cfg, sections = load_config(args.config, parse_options(args.cfg_options))
    apply_flags(cfg, args.config, args.work_dir, args.resume, args.amp, args.auto_scale_lr, launcher)
    summary = train_student(cfg, sections)

    from mmengine.dist import is_main_process

    if is_main_process():
        terminal.log(stage2_table(summary))


STAGE2 = Command(
    "Train a student from the cache of stage 1; the teacher is neither built nor loaded.",
    "{prog} --config configs/demo/retinanet_r101_r50.py --work-dir work_dirs/r50\n"
    "torchrun --nproc-per-node 8 -m pipeline stage2 --config ... --launcher pytorch",
    add_stage2,
    run_stage2,
    RERUN_WITH_RESUME,
)
