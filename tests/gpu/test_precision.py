"""Float32 on the device: whatever the process has set, teacher and codec compute it in full, or with TF32 if asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.codecs.base import Codec
from pipeline.precision import precision
from pipeline.sections import TeacherSection
from pipeline.stage1.encode import encode_views
from pipeline.stage2.teacher_source import CachedTeacher
from pipeline.teacher.heads import dense_outputs
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.conftest import CLASSES
from tests.helpers.coded_batches import encoded, equal, views
from tests.helpers.outputs import calibrated_codec
from tests.helpers.precision import BEFORE, read

pytestmark = pytest.mark.gpu

EXACT = 1e-5  # float32 stays below; TF32 and bfloat16, of 10 and 7 bits of mantissa, are far beyond
LAYERS = 5e-5  # the same for a whole detector, in which cuDNN may choose Winograd's convolutions


@pytest.fixture(params=BEFORE)
def process(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A process that has chosen a precision for its student in one of many ways; what its getters say."""
    fresh = read()
    exec(BEFORE[request.param])
    yield read()
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision(fresh["torch.get_float32_matmul_precision()"])
    torch.backends.cudnn.allow_tf32 = fresh["torch.backends.cudnn.allow_tf32"]
    for products in ("cuda", "mkldnn"):
        owner: Any = getattr(torch.backends, products)
        owner.matmul.fp32_precision = fresh[f"torch.backends.{products}.matmul.fp32_precision"]
    assert read() == fresh


def has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found.double().cpu() - exact).abs().max() / exact.abs().max())


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def conv(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(a.view(1, 256, 32, 32), b.view(256, 256, 2, 2), padding=1)


@pytest.mark.parametrize("work", [matmul, conv])
def test_operators(work: Callable[..., Tensor], process: dict[str, Any], device: torch.device) -> None:
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (0, 1))
    exact, here = work(a, b), [x.float().to(device) for x in (a, b)]
    with precision(False):
        assert error(work(*here), exact) < EXACT
        with precision(True):
            assert (error(work(*here), exact) > EXACT) == has_tf32(device)
        assert error(work(*here), exact) < EXACT
    assert read() == process


@pytest.fixture(scope="module")
def exact(teacher: dict[str, str], device: torch.device) -> tuple[Teacher, list[Tensor], list[Tensor]]:
    """A teacher on the device, views, and its features and scores in float64 on the CPU."""
    built = Teacher(find_teacher(TeacherSection(**teacher)), CLASSES, device)
    shown = [
        torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        for n in range(2)
    ]
    double = copy.deepcopy(built.detector).cpu().double()
    with torch.no_grad():
        features, logits = dense_outputs(double, double.data_preprocessor({"inputs": shown}, False)["inputs"].double())
    return built, shown, [*features, *(level.sigmoid() for level in logits)]


def test_the_teacher(
    process: dict[str, Any], exact: tuple[Teacher, list[Tensor], list[Tensor]], device: torch.device
) -> None:
    built, shown, wanted = exact
    output = built(shown)
    found = [*output.features, *output.scores]
    assert all(tensor.device == device for tensor in found)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < LAYERS
    assert read() == process


@pytest.fixture(scope="module")
def codec() -> Codec:
    return calibrated_codec("frs", 64, 80)


def test_a_cached_teacher(process: dict[str, Any], codec: Codec, device: torch.device) -> None:
    batch = encoded(codec, views(codec)).to(device)
    with precision(False):
        wanted = codec.decode(batch)
    assert equal(CachedTeacher(codec).output(batch), wanted)
    assert read() == process


class Watch:
    """A codec that notes what its matrix products run with."""

    ragged = True

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, output: Any) -> tuple[list[Any], dict[str, float]]:
        self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return [], {}

    def decode(self, batch: Any) -> None:
        self.seen.append(torch.backends.cuda.matmul.fp32_precision)


def test_no_stage_lends_a_codec_the_students_precision(process: dict[str, Any]) -> None:
    codec: Any = Watch()
    encode_views(codec, None, [])  # type: ignore[arg-type]
    CachedTeacher(codec).output(None)  # type: ignore[arg-type]
    assert codec.seen == ["ieee", "ieee"] and read() == process
