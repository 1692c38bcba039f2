"""The demo's GFL teacher: the RetinaNet teacher's frozen backbone with a quarter-width GFL neck and head.

Train:   python demo/train_teacher.py --config configs/demo/teacher_gfl_r101.py --steps 2000 --minutes 9 --processes 1 \
             --out work_dirs/families/gfl.pth --results work_dirs/families/gfl
Result:  mAP 0.454, AP50 0.694 on the 100 val images after 741 steps of 6 scenes, on two shared cores
"""

_base_ = "./teacher_frozen_r101.py"

model = dict(
    type="GFL",
    neck=dict(add_extra_convs="on_output"),
    bbox_head=dict(
        _delete_=True,
        type="GFLHead",
        num_classes=16,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
        reg_max=16,
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(_delete_=True, assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
