"""Stage 2: train a student from the cache. The teacher is neither built nor loaded. See pipeline/cli/stage2.py."""

from pipeline.cli.command import run_script
from pipeline.cli.stage2 import STAGE2


def main() -> None:
    run_script(STAGE2, "stage2_distill.py")


if __name__ == "__main__":
    main()
