"""Other ways to store a teacher's output. Each rival converts it to bytes and back, and reports sizes by tensor.

All rivals store the FRS map with one byte per position, as this project does, so only features and scores differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import zfpy
from numcodecs import Blosc, Zstd
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.records import TeacherOutput

Stored = tuple[dict[str, int], Callable[[], TeacherOutput]]  # bytes of 'features', 'scores', 'frs'; a decoder
Blob = tuple[int, Callable[[], Tensor]]  # bytes of one level of one sample; a decoder
Coder = Callable[[Tensor], Blob]
ZSTD = Zstd(level=19)


def coded_map(output: TeacherOutput) -> tuple[int, list[Tensor]]:
    """Return the bytes of the map, and the decoded map, for a batch of one."""
    coded = BatchMaps.encode(output.frs, 255)
    return len(Blosc("zstd", 8).encode(coded.to_bytes()[0].numpy())), coded.floats


class Blobs:
    """The compressed arrays of one tensor, one for each level."""

    def __init__(self, levels: list[Tensor], encode: Coder) -> None:
        encoded = [encode(level[0].contiguous()) for level in levels]
        self.size = sum(size for size, _ in encoded)
        self._decode = [decode for _, decode in encoded]

    def decode(self) -> list[Tensor]:
        return [decode()[None] for decode in self._decode]


def fp16(x: Tensor) -> Blob:
    """Encode in half precision with zstd 19."""
    blob = ZSTD.encode(x.half().numpy())

    def decode() -> Tensor:
        return torch.from_numpy(np.frombuffer(ZSTD.decode(blob), np.float16).reshape(x.shape).copy()).float()

    return len(blob), decode


def per_channel(bits: int) -> Coder:
    """Return a uniform quantiser with a range for each channel of each level, and zstd 19."""

    def encode(x: Tensor) -> Blob:
        low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
        q = torch.round((x - low) / step).to(torch.uint8).numpy()
        blob = ZSTD.encode(q)  # zstd removes the unused bits of each byte

        def decode() -> Tensor:
            codes = np.frombuffer(ZSTD.decode(blob), np.uint8).reshape(x.shape)
            return torch.from_numpy(codes.copy()).float() * step + low

        return len(blob) + 8 * len(x), decode

    return encode


def zfp(share: float) -> Coder:
    """Return zfp with an absolute tolerance, given as a share of the level's rms."""

    def encode(x: Tensor) -> Blob:
        tolerance = share * float(x.square().mean().sqrt())
        blob = zfpy.compress_numpy(x.numpy(), tolerance=max(tolerance, 1e-12))
        return len(blob), lambda: torch.from_numpy(zfpy.decompress_numpy(blob))

    return encode


def top_k(k: int) -> Coder:
    """Return a coder of the k largest scores of every position. Other scores get the mean of the rest (TinyViT)."""

    def encode(x: Tensor) -> Blob:
        count = min(k, len(x))
        values, channels = x.topk(count, dim=0)
        rest = ((x.sum(dim=0) - values.sum(dim=0)) / max(1, len(x) - count)).half()
        parts = (values.half().numpy(), channels.to(torch.int16).numpy(), rest.numpy())
        size = sum(len(ZSTD.encode(part)) for part in parts)

        def decode() -> Tensor:
            scores = rest.float()[None].expand(x.shape).clone()
            return scores.scatter_(0, channels, values.half().float())

        return size, decode

    return encode


def thresholded(bits: int, floor: float) -> Callable[[TeacherOutput], Stored]:
    """Return a rival that drops positions where the map is below `floor`, and quantises the others per channel."""

    def encode(output: TeacherOutput) -> Stored:
        kept = [m[0] >= floor for m in output.frs]

        def cut(levels: list[Tensor]) -> list[Tensor]:
            return [x * k for x, k in zip(levels, kept)]

        return plain(per_channel(bits), per_channel(bits))(
            TeacherOutput(cut(output.features), cut(output.scores), output.frs)
        )

    return encode


def blosc(output: TeacherOutput) -> Stored:
    """Store float32 with Blosc's default (lz4, shuffle)."""
    default = Blosc()

    def encode(x: Tensor) -> Blob:
        blob = default.encode(x.contiguous().numpy())
        return len(blob), lambda: torch.from_numpy(
            np.frombuffer(default.decode(blob), np.float32).reshape(x.shape).copy()
        )

    return plain(encode, encode)(output)


def plain(
    features: Coder,
    scores: Coder,
) -> Callable[[TeacherOutput], Stored]:
    """Return a rival that encodes features and scores level by level."""

    def encode(output: TeacherOutput) -> Stored:
        size, frs = coded_map(output)
        one, two = Blobs(output.features, features), Blobs(output.scores, scores)

        def decode() -> TeacherOutput:
            return TeacherOutput(one.decode(), two.decode(), frs)

        return {"features": one.size, "scores": two.size, "frs": size}, decode

    return encode


RIVALS: dict[str, Callable[[TeacherOutput], Stored]] = {
    "blosc default, float32": blosc,
    "fp16 + zstd 19": plain(fp16, fp16),
    "int8 a channel + zstd 19": plain(per_channel(8), per_channel(8)),
    "int4 a channel + zstd 19": plain(per_channel(4), per_channel(4)),
    "zfp, tolerance 1% of rms": plain(zfp(0.01), zfp(0.01)),
    "zfp, tolerance 10% of rms": plain(zfp(0.1), zfp(0.1)),
    "top-10 scores, fp16 features": plain(fp16, top_k(10)),
    "top-100 scores, fp16 features": plain(fp16, top_k(100)),
    "positions with m < 0.05 dropped, int8": thresholded(8, 0.05),
}
