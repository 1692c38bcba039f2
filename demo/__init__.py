"""The demo: synthetic detection data with COCO's category names, and thin networks trained on it."""
