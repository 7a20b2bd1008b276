"""NOAH: its sub-networks, the search for the best of them, and the method."""

from vpeft_bench.methods.noah.method import NOAH

__all__ = ["NOAH"]
