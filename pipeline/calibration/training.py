"""Train a probe for a few steps, because a trained student is near a minimum of its loss and a noisy network is not.

Noise on weights changes a network's output along the directions in which its weights can change it. The whole of that
change has a gradient. Training removes this part first, and leaves what the weights cannot correct. At the same
distance from the teacher, the gradient of a trained student is therefore smaller, and the same codec error larger
beside it: students of the demo's RetinaNet find 1.7 to 1.8 times what a probe without training states for the scores
(docs/results/probe.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

STEPS, BATCH = 12, 2
RATE = 1e-3  # change of a weight in the first steps, in units of the rms of its filter
MOMENTS = (0.9, 0.99)
FLOOR = 1e-3  # weights whose gradient is this share of the first one's rms move less


def train(
    parameters: Sequence[Tensor], sizes: Tensor, loss: Callable[[Tensor], Tensor], views: Iterable[Tensor]
) -> None:
    """Change the parameters by at most STEPS steps of Adam on BATCH views each.

    sizes: `filter_sizes` of the parameters. A step changes weights relative to them, so it does not depend on how a
    network is written. loss: of one view. Batches without a finite gradient are left out.
    """
    parts = sizes.split([p.numel() for p in parameters])
    units = [part.view_as(p) for part, p in zip(parts, parameters)]
    starts = [p.detach().clone() for p in parameters]
    changes = [torch.zeros_like(p) for p in starts]
    optimizer = torch.optim.Adam(changes, lr=RATE, betas=MOMENTS, eps=FLOOR)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / STEPS, STEPS)
    views, rms = iter(views), None
    for _ in range(STEPS):
        gradients = [relative_gradient(loss(view), parameters, units) for view in islice(views, BATCH)]
        if not gradients:
            return
        summed = [torch.stack(same).sum(0) for same in zip(*gradients)]
        own = (sum(float(g.square().sum()) for g in summed) / len(sizes)) ** 0.5
        if not 0 < own < math.inf:  # a probe of NaN would measure no error at all
            continue
        rms = rms or own
        for change, gradient in zip(changes, summed):
            change.grad = gradient / rms
        optimizer.step()
        decay.step()
        with torch.no_grad():
            for p, start, unit, change in zip(parameters, starts, units, changes):
                p.copy_(start + unit * change)


def relative_gradient(loss: Tensor, parameters: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient for relative changes of the weights; 0 where the loss does not depend on them."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g * unit for g, p, unit in zip(found, parameters, units)]
