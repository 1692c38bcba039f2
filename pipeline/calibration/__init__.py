"""Fit a codec's tables and steps to a teacher, and measure the gradient error that a codec causes."""
