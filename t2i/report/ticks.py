"""Axis ticks at round numbers: 1, 2 or 5 times a power of ten (1 or 3 on longer logarithmic axes)."""

from __future__ import annotations

import math

from t2i.report.numbers import MINUS


def round_step(span: float, wanted: int) -> float:
    """Smallest of 1, 2, 5 times a power of ten with which `span` holds at most `wanted` steps. span > 0."""
    least = span / wanted
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= least * (1 - 1e-9))


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Multiples of a round step inside [low, high]: (0, 1) -> 0, 0.2, 0.4, 0.6, 0.8, 1. low < high."""
    step = round_step(high - low, wanted)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 (or 3) times them where there is room. 0 < low < high."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [_decimal(factor, exponent) for exponent in exponents for factor in factors]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= wanted:
            break
    if len(inside) > wanted:
        return inside[:: math.ceil(len(inside) / wanted)]
    return inside if len(inside) > 1 else linear_ticks(low, high, wanted)


def _decimal(factor: int, exponent: int) -> float:
    return float(f"{factor}e{exponent}")


def tick_label(value: float) -> str:
    """Shortest decimal text of a tick; powers of ten below 1e-3 and from 1e5 on: `2e-5`, `20k`, `3M`."""
    size = abs(value)
    if size != 0 and size < 1e-3:
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", MINUS)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * unit or (size >= unit and unit > 1e3):
            return f"{value / unit:.12g}{letter}".replace("-", MINUS)
    return f"{value:.12g}".replace("-", MINUS)
