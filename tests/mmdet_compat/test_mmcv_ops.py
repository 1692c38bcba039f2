"""The stand-in for `mmcv._ext`: each op against a slow reference from its definition; four detectors."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.mmdet_compat.ops import backend
from pipeline.mmdet_compat.ops.backend import UnsupportedOpError
from pipeline.mmdet_compat.ops.bilinear import Pooling
from pipeline.mmdet_compat.ops.stand_in import StandIn, install
from tests.helpers.paths import ROOT

install()

# The package's attributes of these names are the ops themselves.
nms_module = importlib.import_module("pipeline.mmdet_compat.ops.nms")
roi_align_module = importlib.import_module("pipeline.mmdet_compat.ops.roi_align")
ext = StandIn("torch")
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["torch", "torchvision"])
def library(request, monkeypatch):
    """Runs a test once through each library; torchvision only where it works."""
    if request.param == "torchvision" and not backend.torchvision_works("cpu"):
        pytest.skip("no working torchvision")
    monkeypatch.setattr(backend, "torchvision_works", lambda device: request.param == "torchvision")
    return request.param


# ---- nms


def reference_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """The loop of mmcv/ops/csrc/pytorch/cpu/nms.cpp on numpy scalars. sorted() is stable: ties rank by index."""
    b, one, zero = boxes.numpy(), boxes.numpy().dtype.type(offset), boxes.numpy().dtype.type(0)
    order = sorted(range(len(b)), key=lambda i: -float(scores[i]))
    kept: list[int] = []
    with np.errstate(all="ignore"):
        area = [(x2 - x1 + one) * (y2 - y1 + one) for x1, y1, x2, y2 in b]
        for j in order:
            for i in kept:
                width = max(zero, min(b[i, 2], b[j, 2]) - max(b[i, 0], b[j, 0]) + one)
                height = max(zero, min(b[i, 3], b[j, 3]) - max(b[i, 1], b[j, 1]) + one)
                overlap = width * height
                if overlap / (area[i] + area[j] - overlap) > np.float32(threshold):
                    break
            else:
                kept.append(j)
    return kept


# A coarse grid makes identical boxes, shared edges, IoUs on the threshold, and sides of length zero or less.
coarse = st.integers(-3, 6).map(float)
fine = st.floats(-20, 50, width=32)
box_lists = st.one_of(*(st.lists(st.tuples(c, c, c, c), max_size=24) for c in (coarse, fine)))
thresholds = st.sampled_from([0.0, 0.2, 0.3, 1 / 3, 0.5, 0.6, 0.75, 1.0])


settings_of_nms = st.tuples(thresholds, st.sampled_from([0, 1]), st.sampled_from([2, 5, 128]))


@many
@given(box_lists, st.data(), settings_of_nms)
def test_nms_is_the_loop(library, box_list, data, drawn):
    threshold, offset, block = drawn
    boxes = torch.tensor(box_list, dtype=torch.float32).reshape(-1, 4)
    ranks = data.draw(st.lists(st.integers(0, 6), min_size=len(boxes), max_size=len(boxes)))
    scores = torch.tensor(ranks, dtype=torch.float32) / 6  # few values, so many ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "BLOCK", block)
        kept = ext.nms(boxes, scores, threshold, offset)
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_many_boxes_is_the_loop(library, offset):
    generator = torch.Generator().manual_seed(offset)
    corner = torch.rand(350, 2, generator=generator) * 120
    boxes = torch.cat([corner, corner + torch.rand(350, 2, generator=generator) * 60], 1)
    scores = (torch.rand(350, generator=generator) * 50).round()
    kept = ext.nms(boxes, scores, 0.5, offset).tolist()
    assert kept == reference_nms(boxes, scores, 0.5, offset)
    assert len(kept) < 300  # some were suppressed, across more than two blocks


def test_nms_by_hand(library):
    # Boxes 0 and 1 overlap by 3 of 5: IoU 0.6, which is not more than 0.6 although float32(0.6) > 0.6.
    # Boxes 2 and 3 are the same, of equal score: the lower index stays. Box 4 has no area: it suppresses none.
    boxes = torch.tensor([[0.0, 0, 4, 1], [1, 0, 5, 1], [9, 9, 11, 11], [9, 9, 11, 11], [2, 0, 2, 1]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.7, 1.0])
    assert ext.nms(boxes, scores, 0.6, 0).tolist() == [4, 0, 1, 2]
    assert ext.nms(boxes, scores, 0.59, 0).tolist() == [4, 0, 2]
    # With offset 1 the widths are 5, 5 and the heights 2: overlap 4 * 2 of 6 * 2, IoU 2/3.
    assert ext.nms(boxes[:2], scores[:2], 0.65, 1).tolist() == [0]
    assert ext.nms(boxes[:2], scores[:2], 0.67, 1).tolist() == [0, 1]


def test_nms_takes_what_mmcv_gives(library):
    from mmcv.ops import batched_nms, nms

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9], [0, 0, 4, 4]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1])
    dets, kept = nms(boxes, scores, 0.5, score_threshold=0.2, max_num=5)
    assert kept.tolist() == [0, 2]
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[[0, 2]])
    assert nms(boxes.numpy(), scores.numpy(), 0.5, max_num=1)[1].tolist() == [0]
    classes = torch.tensor([0, 1, 0, 0])
    assert batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.5))[1].tolist() == [0, 1, 2]
    for boxes_type in (torch.float16, torch.bfloat16, torch.float64):
        assert ext.nms(boxes.to(boxes_type), scores, 0.5, 0).tolist() == [0, 2]
    assert ext.nms(boxes[:0], scores[:0], 0.5, 0).tolist() == []


@many
@given(box_lists, st.data(), thresholds)
def test_nms_match_groups_what_each_kept_box_suppresses(box_list, data, threshold):
    from mmcv.ops import nms_match

    boxes = torch.tensor(box_list, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=len(boxes), max_size=len(boxes)))) / 6
    groups = nms_match(torch.cat([boxes, scores.reshape(-1, 1)], 1), threshold)

    b, taken, expected = boxes.numpy(), set(), []
    with np.errstate(all="ignore"):
        area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        for i in sorted(range(len(b)), key=lambda i: -float(scores[i])):
            if i in taken:
                continue
            group = [i]
            taken.add(i)
            for j in sorted(set(range(len(b))) - taken, key=lambda j: (-float(scores[j]), j)):
                width = max(np.float32(0), min(b[i, 2], b[j, 2]) - max(b[i, 0], b[j, 0]))
                height = max(np.float32(0), min(b[i, 3], b[j, 3]) - max(b[i, 1], b[j, 1]))
                if width * height / (area[i] + area[j] - width * height) >= np.float32(threshold):
                    group.append(j)
                    taken.add(j)
            expected.append(group)
    assert [group.tolist() for group in groups] == expected


# ---- roi_align


def tent_sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C,) bilinear sample of (C, H, W): every pixel weighted by a tent of width 2 around it."""
    _, h, w = image.shape
    if y < -1 or y > h or x < -1 or x > w:
        return np.zeros(len(image))
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    tent_y = np.maximum(0, 1 - np.abs(np.arange(h) - y))
    tent_x = np.maximum(0, 1 - np.abs(np.arange(w) - x))
    return np.einsum("chw,h,w->c", image, tent_y, tent_x)


def reference_roi_align(features: Tensor, rois: Tensor, pooling: Pooling) -> Tensor:
    """RoIAlign from its definition: for each box, bin and sampling point, one sample."""
    out = np.zeros((len(rois), features.shape[1], pooling.height, pooling.width))
    shift = 0.5 if pooling.aligned else 0.0
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * pooling.scale - shift for c in corners)
        height, width = (y2 - y1, x2 - x1) if pooling.aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bin_h, bin_w = height / pooling.height, width / pooling.width
        rows = pooling.sampling_ratio or math.ceil(np.float32(bin_h))
        columns = pooling.sampling_ratio or math.ceil(np.float32(bin_w))
        for p, q in np.ndindex(pooling.height, pooling.width):
            for i, j in np.ndindex(rows, columns):
                y = y1 + p * bin_h + (i + 0.5) * bin_h / rows
                x = x1 + q * bin_w + (j + 0.5) * bin_w / columns
                out[k, :, p, q] += tent_sample(features[int(image)].numpy(), y, x) / (rows * columns)
    return torch.from_numpy(out)


# Multiples of 1/64 keep box sizes exact, so that no rounding decides how many samples ceil(size / bins) asks for.
corners = st.tuples(*[st.integers(-8, 40).map(lambda v: v / 2) | st.integers(-256, 1280).map(lambda v: v / 64)] * 4)
sorted_corners = corners.map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])))


poolings = st.builds(
    Pooling,
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    scale=st.sampled_from([0.25, 0.5, 1.0]),
    sampling_ratio=st.integers(0, 2),
    aligned=st.booleans(),
)


def pool(features: Tensor, rois: Tensor, pooling: Pooling) -> Tensor:
    """What mmcv's RoIAlign layer calls."""
    from mmcv.ops import roi_align

    height, width, scale, ratio, aligned = pooling
    return roi_align(features, rois, (height, width), scale, ratio, "avg", aligned)


@settings(many, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 1), sorted_corners), max_size=3), poolings)
def test_roi_align_is_the_definition(library, boxes, pooling):
    features = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[image, *box] for image, box in boxes], dtype=torch.float64).reshape(-1, 5)
    expected = reference_roi_align(features, rois, pooling)
    torch.testing.assert_close(pool(features, rois, pooling), expected)


# The features are f(y, x) = 4y + x on 4 x 4 pixels, so that a sample between pixels is 4y + x as well.
BY_HAND = [
    # Box 1..3, two bins of size 1 per axis, one point each: at 1.5 and 2.5.
    ((1, 1, 3, 3), Pooling(2, 2, 1.0, 1, False), [7.5, 8.5, 11.5, 12.5]),
    # Aligned, half a pixel less: at 1 and 2.
    ((1, 1, 3, 3), Pooling(2, 2, 1.0, 1, True), [5, 6, 9, 10]),
    # Adaptive: 2 points down (0.5, 1.5), 3 across (0.5, 1.5, 2.5), whose mean is f(1, 1.5).
    ((0, 0, 3, 2), Pooling(1, 1, 1.0, 0, False), [5.5]),
    # The same aligned: y 0 and 1, x 0, 1 and 2; f(0.5, 1).
    ((0, 0, 3, 2), Pooling(1, 1, 1.0, 0, True), [3]),
    # x at -2 lies further out than -1 and counts as zero; x at 0 gives f(0.5, 0).
    ((-3, 0, 1, 1), Pooling(1, 2, 1.0, 1, False), [0, 2]),
    # x at -0.5 counts as the border: f(0.5, 0); x at 3.5 as f(0.5, 3).
    ((-1, 0, 0, 1), Pooling(1, 1, 1.0, 1, False), [2]),
    ((3, 0, 4, 1), Pooling(1, 1, 1.0, 1, False), [5]),
    # x at exactly -1 and at exactly 4 still count as the border.
    ((-2, 0, 0, 1), Pooling(1, 1, 1.0, 1, False), [2]),
    ((3, 0, 5, 1), Pooling(1, 1, 1.0, 1, False), [5]),
    # No width: not aligned it counts as 1 (x at 1.5), aligned it takes no adaptive sample.
    ((1, 1, 1, 2), Pooling(1, 1, 1.0, 0, False), [7.5]),
    ((1, 1, 1, 2), Pooling(1, 1, 1.0, 0, True), [0]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("box, pooling, expected", BY_HAND)
def test_roi_align_by_hand(library, box, pooling, expected, dtype):
    features = torch.arange(16, dtype=dtype).reshape(1, 1, 4, 4)
    pooled = pool(features, torch.tensor([[0, *box]], dtype=dtype), pooling)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.flatten(), torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient(library, aligned, ratio):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 2, 5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    rois = [[0, 0.3, 1.1, 6.2, 9.7], [1, -3, 2, 2, 12], [1, 4, 4, 4, 4], [0, 30, 30, 40, 40]]
    boxes = torch.tensor(rois, dtype=torch.float64)
    pooling = Pooling(2, 3, 0.5, ratio, aligned)
    assert torch.autograd.gradcheck(lambda f: pool(f, boxes, pooling), features)


def test_roi_align_without_boxes_has_a_zero_gradient(library):
    features = torch.ones(1, 2, 4, 4, requires_grad=True)
    pool(features, torch.zeros(0, 5), Pooling(7, 7, 0.25, 0, True)).sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_torchvision_path_equals_torch_path():
    if not backend.torchvision_works("cpu"):
        pytest.skip("no working torchvision")
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 8, 25, 34, generator=generator)
    corner = torch.rand(60, 2, generator=generator) * 250 - 20
    far = corner + torch.rand(60, 2, generator=generator) * 200
    rois = torch.cat([torch.randint(2, (60, 1), generator=generator).float(), corner, far], 1)
    for ratio, aligned in [(0, True), (0, False), (2, True), (2, False)]:
        pooling = Pooling(7, 7, 0.125, ratio, aligned)
        pooled = roi_align_module.torch_roi_align(features, rois, pooling)
        torch.testing.assert_close(pooled, roi_align_module.torchvision_roi_align(features, rois, pooling))
        torch.testing.assert_close(
            roi_align_module.torch_roi_align_grad(pooled, rois, pooling, features.shape),
            roi_align_module.torchvision_roi_align_grad(pooled, rois, pooling, features.shape),
        )
    scores = torch.rand(60, generator=generator)
    for threshold in (0.1, 0.5):
        kept = nms_module.torch_nms(rois[:, 1:], scores, threshold, 0)
        assert torch.equal(kept, torch.ops.torchvision.nms(rois[:, 1:], scores, threshold))


# ---- focal loss


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_focal_loss_is_mmdets_formula(gamma, alpha):
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(40, 5, generator=generator) * 6).requires_grad_()
    with torch.no_grad():
        logits[0] = torch.tensor([-60.0, -20, 0, 20, 60])
    labels = torch.randint(0, 6, (40,), generator=generator)  # 5 is background
    labels[0] = 1
    one_hot = torch.nn.functional.one_hot(labels, 6)[:, :5]
    weights = torch.rand(40, 5, generator=generator)
    ours = sigmoid_focal_loss(logits, labels, gamma, alpha, None, "none")
    theirs = py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=alpha, reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (ours, theirs)))


def test_focal_loss_gradient_and_class_weights():
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    logits.requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, -1, 1])
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, labels, 2.0, 0.25, weight, "none"), logits)
    plain = sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, "none")
    factor = torch.tensor([0.5, 2, 3, 1, 1, 2], dtype=torch.float64)  # background keeps 1
    weighted = sigmoid_focal_loss(logits, labels, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighted, plain * factor[:, None])
    half = sigmoid_focal_loss(logits.half(), labels, 2.0, 0.25, None, "mean")
    torch.testing.assert_close(half.double(), plain.sum() / 6, rtol=5e-3, atol=0)


# ---- the stand-in


def test_other_ops_are_found_and_refuse_by_name():
    with pytest.raises(UnsupportedOpError, match=r"'ball_query_forward'.*install an mmcv") as caught:
        ext.ball_query_forward(torch.zeros(1), kernel_size=3)
    assert isinstance(caught.value, NotImplementedError)
    assert "\n" not in str(caught.value)
    with pytest.raises(NotImplementedError, match="softnms"):
        ext.softnms()


def test_max_pooling_is_refused_by_name():
    arguments: dict[str, Any] = dict(
        aligned_height=1, aligned_width=1, spatial_scale=1.0, sampling_ratio=0, aligned=True
    )
    tensors = [torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), torch.zeros(1, 1, 1, 1), *torch.zeros(2, 0)]
    with pytest.raises(UnsupportedOpError, match="pool_mode='max'"):
        ext.roi_align_forward(*tensors, pool_mode=0, **arguments)


def test_dunders_are_absent():
    for name in ("__file__", "__path__", "__wrapped__", "_pytestfixturefunction"):
        assert not hasattr(ext, name)
        with pytest.raises(AttributeError, match=name):
            getattr(ext, name)
    assert inspect.getmodule(reference_nms) is sys.modules[__name__]  # walks sys.modules


def test_install_is_idempotent_and_mmcv_can_ask():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    from mmcv.utils import ext_loader

    module = sys.modules["mmcv._ext"]
    assert install() == install()
    assert sys.modules["mmcv._ext"] is module
    assert isinstance(get_compiler_version(), str)
    assert isinstance(get_compiling_cuda_version(), str)
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert ext_loader.load_ext("_ext", ["nms", "carafe_forward"]) is module


def run_with_fake_mmcv(folder: Path, extension: str, code: str) -> str:
    """Output of a Python process that finds an mmcv of two files, the second of them `_ext`."""
    (folder / "mmcv").mkdir()
    (folder / "mmcv" / "__init__.py").write_text("")
    (folder / "mmcv" / "_ext.py").write_text(extension)
    start = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    run = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def test_a_compiled_extension_wins(tmp_path):
    code = (
        "from pipeline.mmdet_compat.ops.stand_in import install\nprint(install(), install())\n"
        "import mmcv._ext\nprint(mmcv._ext.nms())\n"
    )
    out = run_with_fake_mmcv(tmp_path, "def nms(): return 'compiled nms'", code)
    assert out.splitlines() == ["compiled compiled", "compiled nms"]


def test_a_broken_compiled_extension_is_named_and_replaced(tmp_path):
    code = (
        "from pipeline.mmdet_compat.ops.stand_in import StandIn, install\n"
        "print(install() in ('torch', 'torchvision'))\n"
        "import mmcv._ext\n"
        "print(isinstance(sys.modules['mmcv._ext'], StandIn))\n"
    )
    out = run_with_fake_mmcv(tmp_path, "raise ImportError('undefined symbol: _ZN3c10')", code)
    assert out.splitlines()[:2] == ["True", "True"]
    assert "mmcv._ext cannot be imported (undefined symbol: _ZN3c10); using pipeline.mmdet_compat" in out


@pytest.mark.parametrize("how", ["absent", "fails at import", "has no ops"])
def test_a_broken_torchvision_is_passed_over(how, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    if how != "absent":
        del sys.modules["torchvision"]
        text = "raise RuntimeError('operator torchvision::nms does not exist')" if "import" in how else ""
        (tmp_path / "torchvision.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
    if how == "has no ops":
        monkeypatch.setattr(torch.ops, "torchvision", object(), raising=False)
    assert backend.torchvision_works.__wrapped__("cpu") is False


# ---- the detectors

TINY_HEAD = dict(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1)
DETECTORS = {
    "retinanet/retinanet_r50_fpn_1x_coco.py": dict(bbox_head=TINY_HEAD),
    "gfl/gfl_r50_fpn_1x_coco.py": dict(bbox_head=TINY_HEAD),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": dict(bbox_head=TINY_HEAD),
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": dict(
        rpn_head=dict(in_channels=32, feat_channels=32),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=32),
            bbox_head=dict(num_classes=3, in_channels=32, fc_out_channels=32),
        ),
    ),
}


def tiny_detector(name: str):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    register_all_modules()
    config = get_config(f"mmdet::{name}")
    config.merge_from_dict({"model": DETECTORS[name]})
    config.merge_from_dict(
        {
            "model.backbone.depth": 18,
            "model.backbone.base_channels": 8,
            "model.backbone.init_cfg": None,
            "model.neck.in_channels": [8, 16, 32, 64],
            "model.neck.out_channels": 32,
        }
    )
    test_cfg = config.model.test_cfg
    test_cfg.get("rcnn", test_cfg).score_thr = 0.0  # an untrained model is sure of nothing
    return MODELS.build(config.model)


def two_images() -> dict:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
        boxes = torch.tensor([[4.0, 4, 40, 44], [20, 10, 60, 62]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        samples.append(sample)
    return dict(inputs=list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)), data_samples=samples)


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_trains_and_predicts(name):
    torch.manual_seed(0)
    model = tiny_detector(name)
    data = model.data_preprocessor(two_images(), training=True)
    losses = model(**data, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    gradients = [p.grad for p in model.neck.parameters() if p.grad is not None]
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients) > 0
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(two_images()), mode="predict")
    for result in results:
        found = result.pred_instances
        assert 0 < len(found) <= 100
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
