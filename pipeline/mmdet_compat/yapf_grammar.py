"""Import yapf, with which mmengine writes configs, without its file in the user's cache folder.

yapf keeps its grammar there, and gives the file its final name before its bytes. Processes that start together on a new
machine, as the ranks of torchrun do, read an empty file and fail with EOFError. A disk that is full at that moment
leaves the empty file there for ever. To parse the grammar takes 20 ms.
"""

from __future__ import annotations

import contextlib
import os
from unittest.mock import patch


def import_yapf() -> None:
    """Import yapf while its cache folder is one that can't exist, so it parses the grammar of its package."""
    with contextlib.suppress(ImportError), patch("platformdirs.user_cache_dir", lambda *_, **__: os.devnull):
        import yapf.yapflib.yapf_api  # noqa: F401
