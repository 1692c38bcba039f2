"""Codecs by name, and the settings that each of them takes."""

from __future__ import annotations

from typing import Any

from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.settings import PROFILES, QUALITIES
from pipeline.codecs.lossless import Lossless
from pipeline.errors import ConfigError

CODECS: dict[str, type[Codec]] = {Lossless.name: Lossless, Frs.name: Frs}
DEFAULTS: dict[str, dict[str, Any]] = {
    Lossless.name: {"zstd": 1, "scores": True},
    # Blosc's 8 is zstd 15: 8% smaller than 5 (zstd 9), and tokens are so few that it costs 20 ms a view at most.
    Frs.name: {"zstd": 8, "scores": True, "quality": "balanced", "profile": "frs"},
}


def codec_settings(config: dict[str, Any]) -> dict[str, Any]:
    """cache.codec of a config with defaults filled in. Raises ConfigError on unknown names, keys or values."""
    name = config.get("type")
    if name not in CODECS:
        raise ConfigError(f"cache.codec.type: expected one of {sorted(CODECS)}, found {name!r}")
    known = DEFAULTS[name]
    for key, value in config.items():
        if key == "type":
            continue
        if key not in known:
            raise ConfigError(f"cache.codec.{key}: unknown key; the {name} codec knows {sorted(known)}")
        if key == "zstd" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 9):
            raise ConfigError(f"cache.codec.zstd: expected a whole number from 1 to 9, found {value!r}")
        if key == "scores" and not isinstance(value, bool):
            raise ConfigError(
                f"cache.codec.scores: expected True or False (leave out the class scores), found {value!r}"
            )
        if key == "profile" and value not in PROFILES:
            raise ConfigError(f"cache.codec.profile: expected one of {sorted(PROFILES)}, found {value!r}")
        if key == "quality" and not _named(value) and not _fraction(value):
            raise ConfigError(
                "cache.codec.quality: expected the gradient error allowed to each loss, between 0.005 and 0.5, or one "
                f"of {QUALITIES}, found {value!r}"
            )
    settings = {**known, **config}
    if settings["scores"]:
        del settings["scores"]  # as in the recipes of caches from before there was a choice
    return settings


def _named(value: Any) -> bool:
    return isinstance(value, str) and value in QUALITIES


def _fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.005 <= value <= 0.5


def new_codec(settings: dict[str, Any]) -> Codec:
    """A codec that has yet to be calibrated."""
    return CODECS[settings["type"]](dict(settings), {})
