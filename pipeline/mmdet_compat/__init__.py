"""Import mmdet, mmcv and mmengine, with replacements for mmcv's compiled ops."""
