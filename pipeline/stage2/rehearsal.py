"""Measure one batch of the val set and step the schedules before training, so that no fault there costs an epoch."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner

from pipeline.data.validation import measure_errors, prepare_metric
from pipeline.mmdet_compat.registry import METRICS

STEPS = 3  # of a schedule after its begin: the first one returns the initial value without a look at the settings


def rehearse_validation(runner: Runner) -> None:
    """Load, predict and process the first val batch, and drop its results. Raise ConfigError or DataError.

    Also prepare the metrics for the data set (`prepare_metric`).
    The generators are left as they were, so the student starts from the same weights.
    """
    loop: Any = runner.val_loop
    dataloader, evaluator = getattr(loop, "dataloader", None), getattr(loop, "evaluator", None)
    if dataloader is None or evaluator is None:  # a loop of the user's own
        return
    model: Any = runner.model
    training = model.training
    with kept_generators(), measure_errors(), torch.no_grad():
        model.eval()
        batch = load_first_batch(dataloader)
        with torch.autocast(model.device.type if hasattr(model, "device") else "cpu", enabled=bool(loop.fp16)):
            outputs = model.val_step(batch)
        evaluator.process(data_samples=outputs, data_batch=batch)
    for metric in evaluator.metrics:
        metric.results.clear()
        if isinstance(metric, METRICS.get("CocoMetric")) and hasattr(dataloader.dataset, "get_data_info"):
            prepare_metric(metric, dataloader.dataset)
    model.train(training)


def rehearse_schedules(schedulers: Iterable[Any]) -> None:
    """Step each of mmengine's schedulers past its begin, and put it and its optimizer back. Raise what it raises."""
    for scheduler in schedulers:
        name, groups = scheduler.param_name, scheduler.optimizer.param_groups
        state, values = dict(scheduler.state_dict()), [group[name] for group in groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer has made no step
            for _ in range(scheduler.begin + STEPS):
                scheduler.step()
        scheduler.load_state_dict(state)
        for group, value in zip(groups, values):
            group[name] = value


def load_first_batch(dataloader: Any) -> Any:
    """Load the first batch in this process: starting the loader's workers would take seconds."""
    if dataloader.batch_sampler is None:
        return next(iter(dataloader))
    return dataloader.collate_fn([dataloader.dataset[index] for index in next(iter(dataloader.batch_sampler))])


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the global generators at the end of the block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
