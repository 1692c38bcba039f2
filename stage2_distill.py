"""Stage 2: train a student from the cache; the teacher is neither built nor loaded. See pipeline/cli/stage2.py."""

from pipeline.cli.command import script
from pipeline.cli.stage2 import STAGE2


def main() -> None:
    script(STAGE2, "stage2_distill.py")


if __name__ == "__main__":
    main()
