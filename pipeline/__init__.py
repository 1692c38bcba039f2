"""FRS teacher cache: run a detection teacher once, distil any number of students from its cached outputs."""

__version__ = "0.1.0"
