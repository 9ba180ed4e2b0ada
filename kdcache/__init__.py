"""Run a frozen teacher once over many views, keep what it said, distil students from it."""

__version__ = "0.1.0"
