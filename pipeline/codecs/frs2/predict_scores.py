"""Predict the scores from the decoded features, with a small network that calibration trains.

    x = P (y - c), c and P: weighted mean and whitening PCA of all levels' features, to 32 dimensions
    h = relu(conv3x3([x, log2(m) / 6 + 1]) + e_l), h = relu(conv3x3(h) + f)
    o = A h + a, shifted so that its maximum over K is logit(m);  b = sqrt(sigmoid(o))

b replaces the mean of sqrt(t) given the map, where it is nearer. It is only added, like the prediction of the levels,
so two devices that round differently still read the same symbols. A convolution sees zeros outside a sample's own grid,
so a sample does not depend on its batch.

Shapes: B batch, C channels, K score channels, (H, W) grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs2.inputs import MapInputs

INPUTS, WIDTH = 32, 64
MARGIN = 2  # positions around an output that the network sees
EDGE = 1e-6  # m is limited to [EDGE, 1 - EDGE] before its logit
TABLES = {
    **{"net_center": "float32", "net_input": "float32", "net_first": "float16", "net_level": "float32"},
    **{"net_second": "float16", "net_bias": "float32", "net_output": "float16", "net_offset": "float32"},
}


def net_shapes(levels: int, channels: int, score_channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each table."""
    inputs = min(INPUTS, channels)
    return {
        "net_center": (channels,),
        "net_input": (inputs, channels),
        "net_first": (WIDTH, inputs + 1, 3, 3),
        "net_level": (levels, WIDTH),
        "net_second": (WIDTH, WIDTH, 3, 3),
        "net_bias": (WIDTH,),
        "net_output": (score_channels, WIDTH),
        "net_offset": (score_channels,),
    }


def derive_tables(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `net_shift`, which is added to P y: -P c."""
    if "net_input" not in tables:
        return {}
    return {"net_shift": -(tables["net_input"].double() @ tables["net_center"].double()).float()}


def whiten(table: Callable[[str], Tensor], features: Tensor) -> Tensor:
    """Return x (..., 32) of features (..., C)."""
    return F.linear(features, table("net_input"), table("net_shift"))


def predict_roots(
    table: Callable[[str], Tensor], level: int, x: Tensor, log_map: Tensor, m: Tensor, inside: Tensor
) -> Tensor:
    """Predict sqrt(t) of a level, (B, K, H, W).

    x: `whiten` of the decoded features. log_map, m: (B, H, W), of the decoded map. inside: (B, 1, H, W), 1 in each
    sample's own grid, else 0.
    """
    return read_roots(table, run_hidden(table, level, x, log_map, inside), m)


def run_hidden(
    table: Callable[[str], Tensor],
    level: int | Tensor,
    x: Tensor,
    log_map: Tensor,
    inside: Tensor,
    padding: int = 1,
) -> Tensor:
    """Return the last hidden layer (B, WIDTH, H, W). level: one for the batch, or that of each sample (B,).

    padding: 0 for inputs with a margin of MARGIN positions on each side, which the result lacks.
    """
    seen = torch.cat([x, log_map[:, None]], dim=1) * inside
    return _run_layers(table, table("net_level")[level][..., None, None], seen, inside, padding)


def _run_layers(
    table: Callable[[str], Tensor], of_level: Tensor, seen: Tensor, inside: Tensor, padding: int = 1
) -> Tensor:
    """Return the last hidden layer of inputs (B, 33, H, W). of_level: e, which is broadcast to (B, WIDTH, H, W)."""
    hidden = (F.conv2d(seen, table("net_first"), padding=padding) + of_level).relu_()
    hidden = hidden * (inside if padding else inside[..., 1:-1, 1:-1])
    return F.conv2d(hidden, table("net_second"), table("net_bias"), padding=padding).relu_()


def read_roots(table: Callable[[str], Tensor], hidden: Tensor, m: Tensor) -> Tensor:
    """Return sqrt(t) (B, K, H, W) of the last hidden layer (B, WIDTH, H, W) and the map (B, H, W)."""
    return _roots(table, hidden.movedim(1, -1), m).movedim(-1, 1)


def predict_packed(table: Callable[[str], Tensor], x: Tensor, inputs: MapInputs, out: Tensor | None = None) -> Tensor:
    """Predict sqrt(t) of all levels, (B, P, K). x: `whiten` of the features, (B, P, 32). out: memory for the result.

    The levels are convolved together, side by side.
    """
    mosaic = inputs.mosaic
    of_level = table("net_level")[inputs.maps.canvas.level[mosaic.nearest]]
    seen = mosaic.spread(torch.cat([x, inputs.packed[..., :1]], dim=2))
    hidden = _run_layers(table, mosaic.plane(of_level), seen, mosaic.plane(mosaic.inside[..., None]))
    return _roots(table, mosaic.gather(hidden), inputs.maps.packed, out)


def _roots(table: Callable[[str], Tensor], hidden: Tensor, m: Tensor, out: Tensor | None = None) -> Tensor:
    """Return sqrt(t) (..., K) of the last hidden layer (..., WIDTH) and the map (...). out: memory for the result."""
    weight = table("net_output").T
    flat = hidden.flatten(0, -2)
    if out is not None:
        out = out.view(len(flat), -1)
    logits = torch.addmm(table("net_offset"), flat, weight, out=out).unflatten(0, hidden.shape[:-1])
    shift = (m.clamp(EDGE, 1 - EDGE).logit() - logits.amax(dim=-1))[..., None]
    if logits.requires_grad:
        return (0.5 * F.logsigmoid(logits + shift)).exp()  # the root of sigmoid has no finite gradient at 0
    return logits.add_(shift).sigmoid_().sqrt_()  # in place, because K outputs a position are much memory
