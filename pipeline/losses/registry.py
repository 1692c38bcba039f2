"""The losses by name. To add one here, add its file, and a line in BUILT_IN.

Another package adds one with an entry point of the group `frs_teacher_cache.losses`. The entry point's name is the
value of `distill.feature_loss`, and its object is a `Loss`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from pipeline.errors import ConfigError
from pipeline.losses.base import Loss
from pipeline.losses.cwd import CWD
from pipeline.losses.frs import FEATURE, SCORE
from pipeline.losses.mgd import MGD
from pipeline.losses.pkd import PKD
from pipeline.plugins import load_plugins

GROUP = "frs_teacher_cache.losses"
BUILT_IN = {"frs": FEATURE, "pkd": PKD, "cwd": CWD, "mgd": MGD}  # by the value of distill.feature_loss


@cache
def feature_losses() -> Mapping[str, Loss]:
    """Return the loss of every value of `distill.feature_loss`. Raise ConfigError where two losses share a name."""
    plugins = load_plugins(GROUP, Loss)
    found = {**BUILT_IN, **plugins}
    names = Counter([SCORE.name, *(loss.name for loss in found.values())])
    taken = sorted({*(BUILT_IN.keys() & plugins.keys()), *(name for name, count in names.items() if count > 1)})
    if taken:
        raise ConfigError(
            f"entry points of {GROUP}: the name {taken[0]!r} is already taken by another loss; uninstall one package"
        )
    return MappingProxyType(found)


@cache
def _by_name() -> Mapping[str, Loss]:
    return {loss.name: loss for loss in (*feature_losses().values(), SCORE)}


def loss_named(name: str) -> Loss:
    """Return a loss by its `Loss.name`: a feature loss, or 'score'."""
    return _by_name()[name]
