"""Stage 1: run the teacher once over every view into a verified cache. See pipeline/cli/stage1.py."""

from pipeline.cli.command import script
from pipeline.cli.stage1 import STAGE1


def main() -> None:
    script(STAGE1, "stage1_cache_teacher.py")


if __name__ == "__main__":
    main()
