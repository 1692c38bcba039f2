"""The codec benchmark's teacher: the demo's R101 backbone with a full-width neck and head, COCO's 80 classes.

FPN 256, heads of 256 channels (two convolutions instead of four), 9 x 80 = 720 score channels a position. The backbone
is the demo teacher's and stays frozen, so two cores train the rest within an hour. The weights are not committed:

Data:      python demo/make_data.py --out work_dirs/benchmark/data --categories 80 --train 600 --val 100
Train:     python demo/train_teacher.py --config configs/benchmark/teacher_retinanet_r101_wide.py \
               --data work_dirs/benchmark/data --out work_dirs/benchmark/teacher.pth \
               --results work_dirs/benchmark/teacher --steps 6000 --minutes 40
"""

_base_ = "../demo/teacher_frozen_r101.py"

data_root = "work_dirs/benchmark/data/"
metainfo = dict(_delete_=True)  # mmdet's 80 classes instead of the demo's 16
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

model = dict(
    neck=dict(out_channels=256),
    bbox_head=dict(num_classes=80, in_channels=256, feat_channels=256),
)
