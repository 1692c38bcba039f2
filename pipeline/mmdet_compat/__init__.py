"""The only door to mmdet, mmcv and mmengine."""
