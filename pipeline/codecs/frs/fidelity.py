"""How far what a cache holds is from what the teacher says, in units of what the codec may be off."""

from __future__ import annotations

from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.map import BatchMaps, unrounded
from pipeline.records import EncodedBatch, TeacherOutput

EXACT = 1e-5  # of a tensor's largest value: what one machine's float32 sums differ by from another's


def overshoot(codec: Codec, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
    """{'features', 'scores' where kept, 'frs'}: largest error over what is allowed; at most 1 on the cache's machine.

    `frs` rounds every coefficient and every code of the map to the nearest step, so half a step is allowed to each;
    those of planes that were left out are not compared, they are what the stated gradient error is about. `lossless`
    is allowed nothing but another machine's last digits.
    """
    return _steps(codec, exact, stored) if isinstance(codec, Frs) else _digits(codec, exact, stored)


def _digits(codec: Codec, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
    found, out = codec.decode(stored), {}
    for name in (*(f"{what}s" for what in codec.kinds), "frs"):
        pairs = list(zip(getattr(found, name), getattr(exact, name)))
        largest = max(float(a.abs().max()) for _, a in pairs)
        out[name] = max(float((b - a).abs().max()) for b, a in pairs) / (EXACT * largest or 1.0)
    return out


def _steps(codec: Frs, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
    samples = codec.coded_maps(stored)
    maps = BatchMaps(samples, exact.levels)
    out = {}
    for what in codec.kinds:
        wanted, _ = codec.coefficients(exact, maps, what)
        found, steps = codec.symbols(stored, maps, what), codec.step_sizes(what, maps)
        out[f"{what}s"] = max(float((c / d - q).abs().max()) for c, d, q in zip(wanted, steps, found)) / 0.5
    live = ([m[b] for m in exact.frs] for b in range(len(samples)))
    codes = (zip(unrounded(m, s.exponents, s.top), s.codes) for m, s in zip(live, samples))
    out["frs"] = max(float((code - c).abs().max()) for levels in codes for code, c in levels) / 0.5
    return out
