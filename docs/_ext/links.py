"""Links to papers, and table cells, in generated Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARXIV = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{4,5})\b")


def linked(text: str) -> str:
    """The text with every arXiv number as a link.

    >>> linked("Loshchilov & Hutter 2019, arXiv 1711.05101")
    'Loshchilov & Hutter 2019, [arXiv 1711.05101](https://arxiv.org/abs/1711.05101)'
    """
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns whose name ends in a colon are aligned to the right."""
    names = [name.removesuffix(":") for name in header]
    lines = [names, ["---:" if name.endswith(":") else "---" for name in header], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
