"""Noise on a network's weights, scaled by what it changes in the network's activations.

A tensor's noise must not depend on how the weights are written. Folding a batch norm into a convolution multiplies each
of its output channels by a factor, and leaves the function unchanged. Noise relative to the weights' norm would then
hardly change some channels and destroy others. Here the noise of each output channel has an rms that changes the
channel's activation by a fixed share of its standard deviation, so both forms of a network get the same noise.

Shape legend: O output channels of a layer, I inputs of one output, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-12
START, LARGEST = 0.15, 4.0  # first amount of noise, and the largest one
CLOSE = 0.1  # relative distance of the unexplained share from the wanted one at which the search ends
ROUNDS = 8


def first_layers(network: nn.Module, share: float) -> list[tuple[str, nn.Module]]:
    """Return (name, module) of the first convolutions and linear layers, deformable ones too: this share of all."""
    found = []
    for name, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() in (2, 4) and not isinstance(layer, nn.Embedding):
            found.append((name, layer))
    return found[: math.ceil(share * len(found))]


class Activations:
    """Sums over a layer's calls: mean and square of each output channel, and the energy of each group's inputs."""

    def __init__(self) -> None:
        self.calls = 0
        self.first: Any = 0.0
        self.second: Any = 0.0
        self.energy: Any = 0.0

    def add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add one call. This is a forward hook."""
        weight: Any = layer.weight
        axis = 1 if weight.dim() == 4 else -1
        if output.shape[axis] != len(weight):
            return  # a transposed convolution
        rest = [n for n in range(output.dim()) if n != axis % output.dim()]
        values, given = output.double(), inputs[0].double()
        self.calls += 1
        self.first, self.second = self.first + values.mean(rest), self.second + values.square().mean(rest)
        channels = given.square().mean([n for n in range(given.dim()) if n != axis % given.dim()])
        taps = weight[0, 0].numel() if weight.dim() == 4 else 1
        self.energy = self.energy + channels.reshape(-1, weight.shape[1]).sum(1) * taps

    def scale(self, weight: Tensor) -> Tensor:
        """Return the rms of noise on each output channel (O,) that changes its activation by one standard deviation.

        A layer that was not called gets the rms of its weights.
        """
        if not self.calls:
            return weight.square().mean().sqrt().expand(len(weight))
        deviation = (self.second / self.calls - (self.first / self.calls).square()).clamp_min(0).sqrt()
        energy = (self.energy / self.calls).repeat_interleave(len(weight) // len(self.energy))
        return torch.where(energy > TINY, deviation / energy.clamp_min(TINY).sqrt(), 0.0).float()


def measure_scales(network: nn.Module, share: float, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return `Activations.scale` of the `first_layers`, by name, over what `run` computes."""
    layers = dict(first_layers(network, share))
    found = {name: Activations() for name in layers}
    handles = [layer.register_forward_hook(found[name].add) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name].scale(layer.weight) for name, layer in layers.items()}  # type: ignore[arg-type]


@torch.no_grad()
def set_noise(student: nn.Module, teacher: nn.Module, scales: dict[str, Tensor], amount: float, seed: int) -> None:
    """Set the student's weights to the teacher's, with noise of `amount` standard deviations of each activation.

    Layers without a scale are left as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, scale in scales.items():
        weight: Any = teacher.get_submodule(name).weight
        noisy: Any = student.get_submodule(name).weight
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        noisy.copy_(weight + amount * scale.reshape(-1, *[1] * (weight.dim() - 1)) * noise)


@dataclass(frozen=True)
class Found:
    """Result of a search: the amount of noise, the unexplained share at it, and whether it is close to the target."""

    amount: float
    share: float
    converged: bool


def find_noise(measure: Callable[[float], float], target: float, start: float = START, rounds: int = ROUNDS) -> Found:
    """Find the amount of noise with an unexplained share of `target`, by log-log interpolation.

    `measure` returns the share at an amount. It grows with about the square of a small amount, and levels off. It is
    called last with the amount that is returned.
    """
    points: dict[float, float] = {}
    amount = last = start
    for _ in range(rounds):
        last = amount
        points[last] = max(measure(last), TINY)
        if abs(math.log(points[last] / target)) <= CLOSE:
            return Found(last, points[last], True)
        amount = _next_amount(points, target)
        if amount in points:
            break
    best = min(points, key=lambda one: abs(math.log(points[one] / target)))
    if best != last:
        points[best] = max(measure(best), TINY)
    return Found(best, points[best], False)


def _next_amount(points: dict[float, float], target: float) -> float:
    """Return the next amount to try: interpolated between its neighbours, else extrapolated by at most a factor 4."""
    below = max((x for x, share in points.items() if share < target), default=None)
    above = min((x for x, share in points.items() if share >= target), default=None)
    if below is not None and above is not None and below < above:
        position = math.log(target / points[below]) / math.log(points[above] / points[below])
        found = below * (above / below) ** min(0.9, max(0.1, position))
    else:
        nearest = below if above is None else above if below is None else min(below, above)
        assert nearest is not None
        found = nearest * min(4.0, max(0.25, math.sqrt(target / points[nearest])))
    return min(LARGEST, float(f"{found:.3g}"))
