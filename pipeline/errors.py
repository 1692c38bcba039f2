"""The errors a user can cause. Each message is one line: what was expected, what was found, what to do.

PipelineError                 the entry scripts print it as one line and leave with code 2
├── ConfigError               no such config, unknown key, value out of range
├── DataError                 annotation file or image missing, broken or ambiguous
├── ViewError                 a transform that cannot be replayed
│   └── ReplayMismatch        a replayed view differs from the one the teacher saw
├── TeacherError              teacher not found, does not fit its weights, or too weak to be worth caching
├── StudentError              the student's levels or classes differ from the cache's
├── CodecError                a tensor the codec cannot represent
└── CacheError                no cache, or one that cannot be used
    ├── StaleCache            made from another teacher, data set, view rule or codec
    ├── CorruptCache          bytes that are not the ones that were written
    └── StoreError            an object store or web server that cannot be reached, or refuses
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(PipelineError):
    """The config names something that does not exist or is out of range."""


class DataError(PipelineError):
    """Annotation file or image missing, undecodable or ambiguous."""


class ViewError(PipelineError):
    """The data pipeline holds a transform that cannot be replayed exactly."""


class ReplayMismatch(ViewError):
    """The replayed view is not the one that the teacher saw."""


class TeacherError(PipelineError):
    """The teacher cannot be found, does not fit its weights, or fails the accuracy gate."""


class StudentError(PipelineError):
    """The student's FPN levels or classes differ from those of the cache."""


class CodecError(PipelineError):
    """A tensor that the codec cannot represent without a silent loss; `sample`: its number in the batch."""

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


class CacheError(PipelineError):
    """There is no cache, or it is incomplete or in use."""


class StaleCache(CacheError):
    """The cache was made from something else than the config names."""


class CorruptCache(CacheError):
    """Bytes on disk are not the bytes that were written."""


class StoreError(CacheError):
    """An object store or web server cannot be reached, or refuses."""


def brief(error: BaseException) -> str:
    """The last line of a foreign error's text, with its type: short enough for our one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:200]}" if lines else type(error).__name__
