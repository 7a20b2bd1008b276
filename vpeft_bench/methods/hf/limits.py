"""Which values of an option fit the widths of the linears that a type is placed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

Widths = Sequence[tuple[int, int]]
"""Input and output features of each linear."""


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _up_to(bounds: Iterable[int]) -> range:
    return range(1, min(bounds) + 1)


RULES: dict[str, Callable[[Widths], Sequence[int]]] = {
    "divides in": lambda widths: _divisors(math.gcd(*(i for i, _ in widths))),
    "divides out": lambda widths: _divisors(math.gcd(*(o for _, o in widths))),
    "divides out, even": lambda widths: [
        d for d in _divisors(math.gcd(*(o for _, o in widths))) if d % 2 == 0
    ],
    "divides both": lambda widths: _divisors(math.gcd(*(math.gcd(i, o) for i, o in widths))),
    "at most in": lambda widths: _up_to(i for i, _ in widths),
    "at most both": lambda widths: _up_to(min(i, o) for i, o in widths),
    "at most product": lambda widths: _up_to(i * o for i, o in widths),
    "at most sparse": lambda widths: _up_to(i * o // (i + o) for i, o in widths),
}


def misfits(
    options: Mapping[str, Any], limits: Mapping[str, str], linears: Iterable[nn.Linear]
) -> list[str]:
    """For each option that does not fit: what is wrong, the valid values and the nearest.

    An option that is 0 or null is not in use.
    """
    widths = sorted({(linear.in_features, linear.out_features) for linear in linears})
    found = []
    for name, rule in limits.items():
        value, valid = options[name], RULES[rule](widths)
        if not value or value in valid:
            continue
        shown = f"1 to {valid[-1]}" if isinstance(valid, range) else ", ".join(map(str, valid))
        inputs, outputs = next(pair for pair in widths if value not in RULES[rule]([pair]))
        close = min(valid, key=lambda v: abs(v - value))
        found.append(
            f"method.{name}={value} does not fit a linear of {inputs} -> {outputs} features; "
            f"valid: {shown} (nearest: method.{name}={close})"
        )
    return found
