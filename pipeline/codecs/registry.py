"""The codecs by name. To add one, add its file or folder, and a line in CODECS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.codecs.base import CalibrationSample, Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs2.codec import Frs2
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.lossless import Lossless
from pipeline.codecs.settings import CodecOptions
from pipeline.errors import ConfigError
from pipeline.fields import read_settings

DEFAULT = Frs2Options.type  # of a config that names no type
CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Lossless, Frs, Frs2)}


def read_options(config: Mapping[str, Any]) -> CodecOptions:
    """Read `cache.codec` of a config or recipe. Raise ConfigError for an unknown name, key or value."""
    name = config.get("type", DEFAULT)
    if not isinstance(name, str) or name not in CODECS:
        raise ConfigError(f"cache.codec.type: expected one of {sorted(CODECS)}, found {name!r}")
    values = {key: value for key, value in config.items() if key != "type"}
    return read_settings(CODECS[name].options_type, values, "cache.codec")


def calibrate_codec(options: CodecOptions, sample: CalibrationSample) -> Codec:
    """Fit the codec of these options to a sample of views. Raise CodecError."""
    return CODECS[options.type].calibrate(options, sample)
