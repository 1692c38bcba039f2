"""The errors that a user can cause. Each message is one line: the value found, the value expected, what to do next.

PipelineError                 the entry scripts print it as one line and exit with code 2
├── ConfigError               no such config, unknown key, value out of range
├── DataError                 annotation file or image missing, broken or ambiguous
├── ViewError                 a transform cannot be replayed
│   └── ReplayMismatch        a replayed view differs from the teacher's view
├── TeacherError              teacher not found, weights that do not fit it, or mAP below teacher.min_map
├── StudentError              the student's levels or classes differ from the cache's
├── CodecError                the codec cannot represent a tensor
└── CacheError                no cache, or it is incomplete or in use
    ├── StaleCache            made from another teacher, data set, view rule or codec
    ├── CorruptCache          bytes differ from the bytes that were written
    └── StoreError            an object store or web server cannot be reached, or refuses a request
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base class of every error that a user can cause and correct."""


class ConfigError(PipelineError):
    """The config names something that does not exist or is out of range."""


class DataError(PipelineError):
    """An annotation file or image is missing, cannot be decoded, or is ambiguous."""


class ViewError(PipelineError):
    """The data pipeline contains a transform that cannot be replayed exactly."""


class ReplayMismatch(ViewError):
    """The replayed view differs from the teacher's view."""


class TeacherError(PipelineError):
    """The teacher cannot be found, does not fit its weights, or fails the accuracy gate."""


class StudentError(PipelineError):
    """The student's FPN levels or classes differ from those of the cache."""


class CodecError(PipelineError):
    """The codec cannot represent a tensor within its error bound. `sample`: index in the batch."""

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


class CacheError(PipelineError):
    """There is no cache, or it is incomplete or in use."""


class StaleCache(CacheError):
    """The cache was made from another teacher, data set, view rule or codec than the config's."""


class CorruptCache(CacheError):
    """The bytes on disk differ from the bytes that were written."""


class StoreError(CacheError):
    """An object store or web server cannot be reached, or refuses a request."""


def brief(error: BaseException) -> str:
    """Return the type and the last line of another library's error, short enough for a one-line message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:200]}" if lines else type(error).__name__
