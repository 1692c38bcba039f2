"""Replacements for mmcv's compiled ops, which the plain wheel does not contain."""
