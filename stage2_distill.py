"""Stage 2: train a student from the cache; the teacher is neither built nor loaded. See pipeline/verbs/stages.py."""

from pipeline.cli import script
from pipeline.verbs.stages import STAGE2


def main() -> None:
    script(STAGE2, "stage2_distill.py")


if __name__ == "__main__":
    main()
