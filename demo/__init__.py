"""The demo: synthetic detection data under COCO's names, and the thin networks trained on it."""
