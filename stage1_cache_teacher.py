"""Stage 1: run the teacher once over every view and write a verified cache. See pipeline/cli/stage1.py."""

from pipeline.cli.command import run_script
from pipeline.cli.stage1 import STAGE1


def main() -> None:
    run_script(STAGE1, "stage1_cache_teacher.py")


if __name__ == "__main__":
    main()
