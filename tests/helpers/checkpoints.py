"""Checkpoints as mmdet 1, 2 and 3 and other tools wrote them, from the weights of a thin detector.

The layouts follow mmcv's `save_checkpoint`, mmdet 2's `tools/train.py` and EMA hooks, and mmengine's `EMAHook`.
"""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor

State = dict[str, Tensor]


class NumpyOne(pickle._Pickler):
    """Writes numpy's objects under the module names of numpy 1."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = getattr(obj, "__module__", "") or "", name or getattr(obj, "__qualname__", "")
        if not module.startswith("numpy._core"):
            super().save_global(obj, name)
            return
        self.write(pickle.GLOBAL + f"{module.replace('_core', 'core')}\n{name}\n".encode())
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch.copy()
    dispatch[type(np.float64(0).__reduce__()[0])] = save_global


OLD_PICKLE = SimpleNamespace(
    Pickler=NumpyOne, dump=lambda obj, file, protocol=2: NumpyOne(file, protocol).dump(obj), __name__="pickle"
)


def ordered(state: State, version: int | None = None) -> OrderedDict:
    """Return a state dict with the `_metadata` that torch adds; with None, as weights_to_cpu of mmcv 0.x wrote it."""
    found = OrderedDict(state)
    if version is not None:
        modules = {"", *(key.rpartition(".")[0] for key in state), *(key.split(".")[0] for key in state)}
        found._metadata = OrderedDict((name, {"version": version}) for name in sorted(modules))  # type: ignore
    return found


def optimizer(state: State) -> dict[str, Any]:
    """Return the state of SGD with momentum after some steps."""
    moments = {n: {"momentum_buffer": torch.zeros_like(v)} for n, v in enumerate(state.values())}
    group = {"lr": 0.02, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False, "initial_lr": 0.02}
    return {"state": moments, "param_groups": [{**group, "params": list(moments)}]}


def mmdet1(state: State, path: Path, classes: Any = None) -> None:
    """mmdet 1: mmcv 0.x and torch 1.3, before zip files, without `_metadata`, the optimizer's tensors on a GPU."""
    config = "model = dict(\n    type='RetinaNet',\n    pretrained='torchvision://resnet50')\nraise SystemExit\n"
    meta = {"mmdet_version": "1.0.0+unknown", "config": config, "CLASSES": classes, "epoch": 12, "iter": 87948}
    meta |= {"mmcv_version": "0.2.16", "time": "Sat Jan 11 12:00:00 2020"}
    content = {"meta": meta, "state_dict": ordered(state), "optimizer": optimizer(state)}
    with mock.patch("torch.serialization.location_tag", lambda storage: "cuda:0"):
        torch.save(content, path, _use_new_zipfile_serialization=False)


def mmdet2(state: State, path: Path, classes: Any = None, zipped: bool = False) -> None:
    """mmdet 2: all of its meta, numpy scalars of numpy 1 in `hook_msgs`, the palette, and the EMA hook's copies."""
    best = {"best_score": np.float64(0.381), "best_ckpt": "work_dirs/best_bbox_mAP.pth", "last_ckpt": "epoch_12.pth"}
    meta = {
        "env_info": "sys.platform: linux\nPython: 3.7.10 (default)\nGPU 0,1: Tesla V100-SXM2-32GB\n",
        "config": "raise SystemExit\n",
        "seed": np.int64(0),
        "exp_name": "retinanet_r50_fpn_1x_coco.py",
        "epoch": 12,
        "iter": 87960,
        "mmcv_version": "1.3.17",
        "mmdet_version": "2.25.0+ca11860",
        "time": "Sat Nov 26 10:00:00 2022",
        "hook_msgs": best,
        "CLASSES": classes,
        "PALETTE": [(220, 20, 60), (119, 11, 32), (0, 0, 142)],
    }
    copies = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in state.items() if value.is_floating_point()}
    content = {"meta": meta, "state_dict": ordered({**state, **copies}, 1), "optimizer": optimizer(state)}
    torch.save(content, path, pickle_module=OLD_PICKLE, _use_new_zipfile_serialization=zipped)


def mmdet3(state: State, path: Path, classes: Any = None) -> None:
    """mmengine: dataset_meta, history, schedulers, and the weights of the last step in `ema_state_dict`."""
    history = {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1]), "lr": HistoryBuffer([0.1], [1])}
    info = {"epoch": 12, "iter": 87960, "best_score": np.float32(0.4), "cfg": "raise SystemExit"}
    meta = {"epoch": 12, "iter": 87960, "cfg": "raise SystemExit", "seed": 520, "experiment_name": "teacher"}
    meta |= {"time": "20230112_120000", "mmengine_version": "0.10.4"}
    meta["dataset_meta"] = {"CLASSES": classes, "PALETTE": [(220, 20, 60)]}
    last = {f"module.{key}": value + 1 for key, value in state.items()}
    content = {
        "meta": meta,
        "state_dict": ordered(state, 1),
        "ema_state_dict": ordered({"steps": torch.tensor(87960), **last}, 1),
        "optimizer": {**optimizer(state), "base_param_settings": {"params": torch.tensor([0.0]), "lr": 0.02}},
        "param_schedulers": [{"milestones": {8: 1}, "_last_value": [np.float64(0.02)], "verbose": False}],
        "message_hub": {"log_scalars": OrderedDict(history), "runtime_info": info, "resumed_keys": OrderedDict()},
    }
    torch.save(content, path)


def detr(state: State, path: Path, classes: Any = None) -> None:
    """DETR, timm and MAE: `model`, beside optimizer, schedule and the arguments of the command line."""
    arguments = argparse.Namespace(lr=1e-4, output_dir=Path("out"), options=ConfigDict(a=ConfigDict(b=1)))
    content = {"model": ordered(state, 1), "optimizer": optimizer(state), "lr_scheduler": {"last_epoch": 1}, "epoch": 1}
    torch.save({**content, "args": arguments}, path)


def yolox(state: State, path: Path, classes: Any = None) -> None:
    content = {"start_epoch": 300, "model": dict(state), "optimizer": optimizer(state), "best_ap": np.float64(0.4)}
    torch.save({**content, "curr_ap": 0.39}, path)


def bare(state: State, path: Path, classes: Any = None) -> None:
    torch.save(ordered(state, 1), path)


def only_average(state: State, path: Path, classes: Any = None) -> None:
    """An averaged model without the plain one."""
    averaged = {f"module.{key}": value for key, value in state.items()}
    torch.save({"ema_state_dict": {"steps": torch.tensor(9), **averaged}, "meta": {}}, path)


def under(prefix: str, **others: State) -> Callable[..., None]:
    """Return a writer of files whose keys have a prefix; `others` are further parts of the file, by their prefix."""

    def write(state: State, path: Path, classes: Any = None) -> None:
        found = {f"{prefix}{key}": value for key, value in state.items()}
        for other, part in others.items():
            found |= {f"{other}.{key}": value for key, value in part.items()}
        torch.save({"state_dict": ordered(found, 1), "meta": {"CLASSES": classes}}, path)

    return write


def coco_underscored() -> tuple[str, ...]:
    """Return COCO's classes as mmdet's coco_classes() spells them."""
    from mmdet.evaluation.functional import coco_classes

    return tuple(coco_classes())
