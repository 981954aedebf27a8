"""Numbers and foreign text as people read them, the same in every report."""

from __future__ import annotations

import math


def count(n: int) -> str:
    """`12,345`."""
    return f"{n:,}"


def number(x: float | None) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if x is None or not math.isfinite(x):
        return "not finite" if x is not None else "not known"
    if x == int(x) and abs(x) < 1e6:
        return f"{int(x):,}"
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}"


def ordinal(n: int) -> str:
    """`1st`, `12th`, `33rd`."""
    tail = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{tail}"


def factor(x: float | None) -> str:
    """`15.9 x`."""
    return "not finite" if x is None or not math.isfinite(x) else f"{number(x)} x"


def percent(x: float) -> str:
    """`99 %`; a share that is not all and not nothing is never rounded to 100 or 0."""
    hundred = 100 * x
    falsely_round = 0.05 <= abs(hundred) < 0.5 or 99.5 <= hundred < 99.95
    text = f"{hundred:.1f}" if falsely_round else f"{hundred:.0f}"
    return f"{'0' if text == '-0' else text} %"


def p_value(p: float | None) -> str | None:
    """`p = 6e-16`, `p = .03`."""
    if p is None or not math.isfinite(p):
        return None
    return f"p = {p:.2g}"


def plain(text: str) -> str:
    """The text on one line, without control characters: a name from a log cannot steer a terminal."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def code(text: str) -> str:
    """The text with its lines and indents, without other control characters."""
    return "\n".join("".join(c for c in line.expandtabs(4) if c.isprintable()) for line in text.splitlines())
