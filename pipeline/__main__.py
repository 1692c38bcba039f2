"""python -m pipeline <verb>, or frs-cache <verb>: make a cache, look at it, train from it."""

# PYTHON_ARGCOMPLETE_OK
from pipeline.cli.main import main

if __name__ == "__main__":
    main()
