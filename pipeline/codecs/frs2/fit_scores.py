"""Train the network that predicts the scores (predict_scores.py), for a fixed number of steps.

The result is the same on one machine, but not on another one: a sum of float32 numbers depends on its order.

Shapes: C channels, K score channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs2.kept import SEED
from pipeline.codecs.frs2.predict_scores import INPUTS, MARGIN, TABLES, net_shapes, read_roots, run_hidden
from pipeline.codecs.frs2.windows import Windows
from pipeline.codecs.packing import widen
from pipeline.records import TeacherOutput

STEPS, BATCH, RATE, CLIP, BETAS = 800, 4, 2.5e-3, 2.0, (0.9, 0.99)
PICKED = 16  # positions of a window in the loss, drawn by their weight: K outputs for each would take most of the time
FLATTEST = 1e-3  # least variance of an input, relative to the largest; weaker ones are not amplified further
INPUT = ("net_center", "net_input")  # the tables that are not trained
START_BIAS, START_SCALE = -4.0, 0.1  # of the output layer
TINY = torch.finfo(torch.float32).tiny
Tables = dict[str, np.ndarray]


class InputMoments:
    """Mean and covariance of the features of all levels, weighted by m / S_l, to whiten the network's inputs."""

    def __init__(self) -> None:
        self._weight, self._first, self._second = 0.0, np.zeros(1), np.zeros((1, 1))
        self.device = torch.device("cpu")

    def watch(self, outputs: Iterable[TeacherOutput]) -> Iterator[TeacherOutput]:
        """Yield the outputs, and add them up."""
        for output in outputs:
            self.device = output.frs[0].device
            width = max(y.shape[1] for y in output.features)
            for m, y in zip(output.frs, output.features):
                share = (m / m.sum(dim=(1, 2), keepdim=True).clamp_min(TINY)).flatten()
                flat = widen(y, width).movedim(1, 0).flatten(1)
                weighted = flat * share
                self._weight += float(share.sum())
                self._first = self._first + weighted.sum(dim=1).double().cpu().numpy()
                self._second = self._second + (weighted @ flat.T).double().cpu().numpy()
            yield output

    def tables(self) -> Tables:
        """Return `net_center` and `net_input`: the mean, and PCA whitening."""
        center = self._first / max(self._weight, TINY)
        covariance = self._second / max(self._weight, TINY) - np.outer(center, center)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1][:INPUTS], vectors[:, ::-1][:, :INPUTS]
        scale = 1 / np.sqrt(np.maximum(values, max(FLATTEST * values[0], TINY)))
        return {"net_center": center.astype(np.float32), "net_input": (vectors * scale).T.astype(np.float32)}


def train_network(
    windows: Windows,
    channels: int,
    score_channels: int,
    device: torch.device,
    announce: Callable[[int], Callable[[], bool | None]],
) -> Tables:
    """Train the network on windows. Return its tables, without those of the input.

    announce: called with the number of steps, returns what to call after each one; False ends the training.
    """
    advance = announce(STEPS)
    levels = len(windows.learning)
    shapes = {n: s for n, s in net_shapes(levels, channels, score_channels).items() if n not in INPUT}
    generator = torch.Generator().manual_seed(SEED)
    parameters = {name: _initial(name, shape, generator).to(device).requires_grad_() for name, shape in shapes.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 0.5 + 0.5 * math.cos(math.pi * n / STEPS))
    picks = torch.Generator().manual_seed(SEED)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimiser.zero_grad()
            _loss(parameters, windows.batch(BATCH, device), picks).backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
            optimiser.step()
            schedule.step()
            if advance() is False:
                break
    return {name: p.detach().cpu().numpy().astype(TABLES[name]) for name, p in parameters.items()}


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name == "net_offset":
        return torch.full(shape, START_BIAS)
    if len(shape) == 1 or name == "net_level":
        return torch.zeros(shape)
    scale = START_SCALE if name == "net_output" else 1.0
    return torch.randn(shape, generator=generator) * scale * math.sqrt(2 / math.prod(shape[1:]))


def _loss(parameters: dict[str, Tensor], batch: list[Tensor], picks: torch.Generator) -> Tensor:
    """Return the squared error of sqrt(t) at positions drawn by their share, summed over classes and levels."""
    level, x, log_map, m, inside, roots, share = batch
    hidden = run_hidden(parameters.__getitem__, level, x, log_map, inside[:, None], padding=0)
    inner = (..., slice(MARGIN, MARGIN + roots.shape[-2]), slice(MARGIN, MARGIN + roots.shape[-1]))
    at = torch.multinomial(share.flatten(1).cpu() + TINY, PICKED, replacement=True, generator=picks).to(x.device)
    picked = read_roots(parameters.__getitem__, _pick(hidden, at), _pick(m[inner][:, None], at)[:, 0])
    weight = share.flatten(1).sum(dim=1)  # 0 for a window without weight
    return (weight[:, None] * (picked - _pick(roots, at)).square().sum(dim=(1, 2))).sum() / (BATCH * PICKED)


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """Return (B, X, 1, N): the values of (B, X, h, w) at positions (B, N)."""
    return x.flatten(2).gather(2, at[:, None].expand(-1, x.shape[1], -1))[:, :, None]
