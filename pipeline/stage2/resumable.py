"""Check the values of a checkpoint before a run resumes from it.

A checkpoint is plain data, but a value of another type would raise an error in the middle of an epoch, or change the
training without one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pipeline.cache.schema import COUNT, Number, find_mismatch
from pipeline.errors import StudentError
from pipeline.text import one_line

SEED = Number(0, (1 << 32) - 1, or_null=True)
REQUIRED = {
    "meta": {"epoch": Number(0, 1 << 31), "iter": Number(0, 1 << 40)},
    "state_dict": {},
    "optimizer": {},
    "frs": {},
}
# Where they are present: the oldest checkpoints lack some, and a live teacher has no content.
OPTIONAL: dict[str, dict[str, Any]] = {
    "meta": {"seed": SEED},
    "frs": {
        "adapters": {},
        "runtime_info": {},
        "passes": {str: str},
        "content": str | None,
        "planned": str,
        "done": COUNT,
        "steps": COUNT,
        "global_batch": COUNT,
    },
}
SCHEDULER = {"last_step": Number(-1, 1 << 40), "_global_step": Number(0, 1 << 40)}
# State of torch's optimizers with a value for each value of a parameter.
LIKE_PARAMETER = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
    *("square_avg", "grad_avg", "acc_delta", "sum"),
}
SCHEDULED = ("base_values", "_last_value")  # lists of numbers


def find_wrong_value(content: dict[str, Any]) -> str | None:
    """Return the name of the first missing or invalid value of a checkpoint of stage 2; None if all are valid."""
    wrong = find_mismatch(content, REQUIRED)
    if wrong is not None:
        return wrong
    for part, wanted in OPTIONAL.items():
        present = {key: kind for key, kind in wanted.items() if key in content[part]}
        wrong = find_mismatch(content[part], present, part)
        if wrong is not None:
            return wrong
    info = content["frs"].get("runtime_info", {})
    return _wrong_tensor(content) or _wrong_info(info) or _wrong_schedule(content)


def _wrong_tensor(content: dict[str, Any]) -> str | None:
    """Return the first weight that is not a dense tensor under a name."""
    parts = {"state_dict": content["state_dict"], "frs.adapters": content["frs"].get("adapters", {})}
    if "ema_state_dict" in content:
        parts["ema_state_dict"] = content["ema_state_dict"]
    for part, state in parts.items():
        if not isinstance(state, dict):
            return part
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                return f"{part}.{name!s:.60}"
    return None


def _wrong_info(info: dict[Any, Any]) -> str | None:
    """Return the first entry about checkpoints that mmengine's hook could not use."""
    for key, value in info.items():
        name = f"frs.runtime_info.{key!s:.60}"
        if not isinstance(key, str):
            return name
        if key.startswith("best_score"):
            fits = is_number(value)
        elif key.startswith("keep_ckpt"):
            fits = isinstance(value, list) and all(type(one) in (int, str) for one in value)
        else:
            fits = isinstance(value, str)
        if not fits:
            return name
    return None


def _wrong_schedule(content: dict[str, Any]) -> str | None:
    """Return the first value of a scheduler that is not a number."""
    found = content.get("param_schedulers", [])
    found = [one for part in found.values() for one in part] if isinstance(found, dict) else found
    if not isinstance(found, list):
        return "param_schedulers"
    for n, state in enumerate(found):
        if not isinstance(state, dict):
            return f"param_schedulers[{n}]"
        for key, kind in SCHEDULER.items():
            if key in state and not kind.matches(state[key]):
                return f"param_schedulers[{n}].{key}"
        for key in SCHEDULED:
            values = state.get(key, [])
            if not isinstance(values, list) or not all(map(is_number, values)):
                return f"param_schedulers[{n}].{key}"
    return None


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e30


def require_optimizer_values(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Raise StudentError where the saved state of an optimizer of the same groups has other types or shapes."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = [key for group in saved["param_groups"] for key in group["params"]]
    shapes = dict(zip(ids, (tuple(parameter.shape) for parameter in own)))
    state = saved.get("state", {})
    wrong = None if isinstance(state, dict) else "state"
    for key, values in state.items() if wrong is None else ():
        if key not in shapes or not isinstance(values, dict):
            wrong = f"state of parameter {key!s:.40}"
        for name, value in values.items() if wrong is None else ():
            if name == "step":
                fits = is_number(value) or (isinstance(value, Tensor) and value.dim() == 0)
            else:
                fits = name not in LIKE_PARAMETER or value is None or _has_shape(value, shapes[key])
            wrong = wrong or (None if fits else f"{name!s:.40} of parameter {key!s:.40}")
    for n, (group, mine) in enumerate(zip(saved["param_groups"], optimizer.param_groups)):
        for name, value in group.items():
            if name in mine and name != "params" and not _same_kind(value, mine[name]):
                wrong = wrong or f"{name} of group {n}"
    if wrong is not None:
        raise StudentError(
            f"checkpoint: invalid {one_line(wrong)} of its optimizer; resume from another checkpoint, or start a new "
            "run with load_from"
        )


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


def _same_kind(value: Any, own: Any) -> bool:
    """Return whether a setting of an optimizer has the type of the config's. A tuple and a list are alike."""
    if isinstance(own, bool) or value is None or own is None:
        return value is None or own is None or isinstance(value, bool)
    if isinstance(own, int | float):
        return is_number(value)
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(own) and all(map(_same_kind, value, own))
    return isinstance(value, type(own))
