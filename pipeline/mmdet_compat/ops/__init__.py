"""Stand-ins for mmcv's compiled ops, which the plain wheel lacks."""
