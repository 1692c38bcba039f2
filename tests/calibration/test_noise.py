"""Noise depends on what a network computes, not on how its weights are written. Its search ends, or says it did not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.calibration.noise import CLOSE, LARGEST, ROUNDS, find_noise, measure_scales, set_noise


class Network(nn.Module):
    """Convolutions with batch norms of very uneven scales; plain, depthwise and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 5)
        self.never = nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.norm.weight.copy_(10.0 ** torch.linspace(-3, 3, 8))
            self.norm.running_var.copy_(10.0 ** torch.linspace(2, -2, 8))  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.deep(self.norm(self.first(x)).tanh()).relu().movedim(1, -1))


def folded(network: Network) -> Network:
    """Return the same function with the batch norm folded into the first convolution."""
    other, norm = copy.deepcopy(network), network.norm
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    with torch.no_grad():
        other.first.weight.mul_(factor[:, None, None, None])
        other.first.bias = nn.Parameter(norm.bias - norm.running_mean * factor)  # type: ignore[operator]
    other.norm = nn.Identity()  # type: ignore[assignment]
    return other


def test_folded_batch_norms_change_nothing() -> None:
    plain = Network().eval()
    other, x = folded(plain), torch.randn(2, 3, 24, 32)
    outputs, clean = [], plain(x)
    assert torch.allclose(other(x), clean, atol=1e-3)
    for network in (plain, other):
        scales = measure_scales(network, 1.0, lambda network=network: network(x))
        noisy = copy.deepcopy(network)
        set_noise(noisy, network, scales, 0.2, seed=7)
        outputs.append(noisy(x))
        assert torch.equal(network(x), plain(x) if network is plain else other(x)), "the clean network was changed"
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
    assert 0.05 < float((outputs[0] - clean).norm() / (clean - clean.mean()).norm()) < 1


def test_every_channel_is_disturbed_by_the_same_share() -> None:
    network, x = Network().eval(), torch.randn(4, 3, 32, 32)
    scales = measure_scales(network, 1.0, lambda: network(x))
    noisy = copy.deepcopy(network)
    set_noise(noisy, network, scales, 0.1, seed=3)
    before, after = network.first(x), noisy.first(x)
    shares = (after - before).square().mean((0, 2, 3)).sqrt() / before.flatten(2).std((0, 2))
    assert float(shares.min()) > 0.03 and float(shares.max()) < 0.25, shares  # 27 random weights a channel
    assert not torch.equal(noisy.never.weight, network.never.weight), "a layer that was not called gets noise too"
    assert set(scales) == {"first", "deep", "last", "never"}
    few = measure_scales(network, 0.3, lambda: network(x))
    set_noise(noisy, network, few, 0.1, seed=3)
    assert set(few) == {"first", "deep"}, "two of four layers"


@pytest.mark.parametrize("target", [0.02, 0.15, 0.5])
@pytest.mark.parametrize("steepness", [1e-3, 1.0, 1e3])
def test_the_search_converges(target: float, steepness: float) -> None:
    tried: list[float] = []

    def share(amount: float) -> float:  # quadratic, then saturated
        tried.append(amount)
        return 1.0 - math.exp(-steepness * amount**2)

    found = find_noise(share, target)
    if steepness * LARGEST**2 > 2:
        assert found.converged and len(tried) <= ROUNDS
        assert abs(math.log(found.share / target)) <= CLOSE
    assert found.amount == tried[-1] and found.share == pytest.approx(1.0 - math.exp(-steepness * tried[-1] ** 2))


def test_a_search_without_end_says_so_and_returns_the_closest() -> None:
    tried: list[float] = []

    def flat(amount: float) -> float:
        tried.append(amount)
        return min(0.05, amount)

    found = find_noise(flat, 0.2)
    assert not found.converged and found.share == 0.05 and found.amount == tried[-1] and len(tried) <= ROUNDS + 1
    tried.clear()
    assert find_noise(flat, 0.2, rounds=1).amount == tried[0] and len(tried) == 1, "measured once"
    tried.clear()
    assert not find_noise(flat, 0.2, rounds=2).converged and len(tried) <= 3
    jump = find_noise(lambda amount: 0.01 if amount < 0.2 else 0.9, 0.2)
    assert not jump.converged and jump.share in (0.01, 0.9)
