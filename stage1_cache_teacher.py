"""Stage 1: run the teacher once over every view into a verified cache. See pipeline/verbs/stages.py."""

from pipeline.cli import script
from pipeline.verbs.stages import STAGE1


def main() -> None:
    script(STAGE1, "stage1_cache_teacher.py")


if __name__ == "__main__":
    main()
