"""The demo's FCOS teacher: the RetinaNet teacher's frozen backbone with a quarter-width FCOS neck and head.

Train:   python demo/train_teacher.py --config configs/demo/teacher_fcos_r101.py --steps 2000 --minutes 5 \
             --out work_dirs/families/fcos.pth --results work_dirs/families/fcos
Result:  mAP 0.298, AP50 0.561 on the 100 val images after 390 steps of 12 scenes, on two shared cores
"""

_base_ = "./teacher_frozen_r101.py"

model = dict(
    type="FCOS",
    neck=dict(add_extra_convs="on_output", relu_before_extra_convs=True),
    bbox_head=dict(
        _delete_=True,
        type="FCOSHead",
        num_classes=16,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        strides=[8, 16, 32, 64, 128],
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="IoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=None,
)
