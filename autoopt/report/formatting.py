"""Numbers for people, and text that cannot act on the screen it is shown on."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

UNKNOWN = "-"

# Controls move a terminal's cursor, format characters reorder text, lone surrogates cannot be encoded.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: object) -> str:
    r"""The text with control, formatting and unencodable characters written as escapes.

    Module names are free text: a newline or a terminal escape in one must not act as such.

    >>> print(visible("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in _HIDDEN else character for character in str(text)
    )


def shorten(text: str, length: int) -> str:
    """The text, cut in its middle where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def format_number(value: float | None, unit: str = "") -> str:
    """A number to three significant digits, with its unit.

    >>> [format_number(v) for v in (0.02, 0.0003, 1234.0, 123456.0, 0.0, None)]
    ['0.02', '3e-4', '1234', '1.23e5', '0', '-']
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if value == 0:
        text = "0"
    elif 1e-3 <= size < 1e3:
        text = f"{value:.3g}"
        text = f"{value:.0f}" if "e" in text else text
    elif 1e3 <= size < 1e4:
        text = f"{value:.0f}"
    else:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if not exponent:
            mantissa, _, exponent = f"{value:.2e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    return f"{text} {unit}" if unit else text


def format_count(count: int) -> str:
    """A count with thousands separators, shortened from a million on.

    >>> [format_count(n) for n in (512, 12_345, 7_087_872, 1_500_000_000)]
    ['512', '12,345', '7.09 M', '1.5 G']
    """
    if count < 1_000_000:
        return f"{count:,}"
    scale, suffix = (1e6, "M") if count < 1_000_000_000 else (1e9, "G")
    return f"{count / scale:.3g} {suffix}"


def format_bytes(count: int) -> str:
    """A number of bytes in MiB (2**20 bytes), three significant digits.

    >>> [format_bytes(n) for n in (1_000, 12_345_678, 5_000_000_000)]
    ['0.000954 MiB', '11.8 MiB', '4,768 MiB']
    """
    size = count / 2**20
    return f"{size:,.0f} MiB" if size >= 1000 else f"{size:.3g} MiB"


def format_loss_change(gain: float | None) -> str:
    """A change of log loss as the change of the loss in per cent.

    >>> [format_loss_change(g) for g in (-0.073, 0.5, -0.69, None)]
    ['-7.0 %', '+65 %', '-50 %', '-']
    """
    if gain is None:
        return UNKNOWN
    percent = 100 * math.expm1(min(gain, 20.0))
    return f"{percent:+.1f} %" if abs(percent) < 9.95 else f"{percent:+,.0f} %"


def format_interval(ends: tuple[float, float] | None) -> str:
    """An interval of changes of log loss as changes of the loss: `-12 % to -1.5 %`."""
    return UNKNOWN if ends is None else f"{format_loss_change(ends[0])} to {format_loss_change(ends[1])}"


def format_share(probability: float | None) -> str:
    """A probability in per cent."""
    return UNKNOWN if probability is None else f"{100 * probability:.0f} %"


def format_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Shapes as text: `768x2304`, more than two of them as the first and the number of others."""
    texts = ["x".join(map(str, shape)) or "scalar" for shape in shapes]
    return ", ".join(texts) if len(texts) <= 2 else f"{texts[0]} and {len(texts) - 1} other shapes"


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 tensor`, `2 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
