"""Drawing primitives for the pictures: escaped SVG nodes, colour-blind-safe fills, and axis ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from autoopt.optimizers.catalog import get
from autoopt.report.formatting import visible

# Okabe & Ito 2008, "Color Universal Design", without black, which vanishes on a dark page.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
# Dark text on every colour but the two darkest: contrast above 4.5 on each.
_LIGHT_INK = {"#0072B2"}
# The second sign beside colour: strokes drawn over the fill in an 8 x 8 tile.
_PATTERNS = (
    "",
    "M0 8L8 0M-2 2L2 -2M6 10L10 6",
    "M2 2h1v1h-1zM6 6h1v1h-1z",
    "M0 4H8",
    "M0 0L8 8M-2 6L2 10M6 -2L10 2",
    "M4 0V8",
    "M0 4H8M4 0V8",
)
# Viridis at seven equal steps (van der Walt & Smith 2015): lightness rises evenly, also in grey.
_VIRIDIS = (
    (68, 1, 84),
    (68, 58, 131),
    (49, 104, 142),
    (33, 145, 140),
    (53, 183, 121),
    (144, 215, 67),
    (253, 231, 37),
)


def node(
    parent: ElementTree.Element | None, tag: str, text: str | None = None, **attributes: object
) -> ElementTree.Element:
    """A new element under `parent`; text and attributes are escaped when the picture is written.

    Underscores in attribute names become hyphens, and a trailing one is dropped (`class_`). Floats
    are written with at most two decimals.
    """
    named = {
        (name.rstrip("_") if name in ("class_",) else name.replace("_", "-")): _text(value)
        for name, value in attributes.items()
    }
    element = ElementTree.Element(tag, named) if parent is None else ElementTree.SubElement(parent, tag, named)
    element.text = None if text is None else visible(text)
    return element


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return visible(value)


def picture(title: str, description: str, **attributes: str | float) -> ElementTree.Element:
    """An `<svg>` root that a screen reader reads as one image with a title and a description."""
    root = node(None, "svg", None, role="img", aria_label=f"{title}. {description}", class_="picture", **attributes)
    node(root, "title", title)
    node(root, "desc", description)
    return root


def sized_picture(title: str, description: str, width: float, height: float) -> ElementTree.Element:
    """A picture of a fixed size in pixels, which a page may scale down as a whole."""
    return picture(title, description, width=width, height=height, viewBox=f"0 0 {width:.0f} {height:.0f}")


def write(root: ElementTree.Element) -> str:
    """The picture as SVG text to put into a page."""
    return ElementTree.tostring(root, encoding="unicode")


def percent(fraction: float) -> str:
    """A fraction of the picture's width as an SVG length, so that text keeps its size when it shrinks."""
    return f"{100 * fraction:.2f}%"


@dataclass(frozen=True)
class Mark:
    """How one optimizer is drawn.

    Attributes:
        title: The optimizer's name as its authors write it.
        letter: A short code that is unique in the picture.
        colour: Fill colour.
        pattern: Path drawn over the fill, `""` for none.
        ink: Colour of text and pattern on the fill.
    """

    title: str
    letter: str
    colour: str
    pattern: str
    ink: str


def marks(optimizers: Iterable[str]) -> dict[str, Mark]:
    """Catalog name -> mark, distinct for each, the same for the same optimizers in any order."""
    result: dict[str, Mark] = {}
    used: set[str] = set()
    for index, name in enumerate(sorted(set(optimizers))):
        title = get(name).title
        letters = [c for c in title if c.isupper()] + list(title.upper()) + list("0123456789")
        letter = next((c for c in letters if c.isalnum() and c not in used), str(index))
        used.add(letter)
        colour = _COLOURS[index % len(_COLOURS)]
        # From the eighth optimizer on colours repeat: the pattern is shifted so that the pair is new.
        pattern = _PATTERNS[(index + index // len(_COLOURS)) % len(_PATTERNS)]
        result[name] = Mark(title, letter, colour, pattern, "#fff" if colour in _LIGHT_INK else "#000")
    return result


def fill(root: ElementTree.Element, prefix: str, mark: Mark) -> str:
    """The `fill` value of a mark; adds its pattern to the picture's definitions on first use."""
    if not mark.pattern:
        return mark.colour
    identifier = f"{prefix}-{mark.colour[1:]}-{_PATTERNS.index(mark.pattern)}"
    definitions = root.find("defs")
    if definitions is None:
        definitions = node(root, "defs")
    if not any(child.get("id") == identifier for child in definitions):
        tile = node(definitions, "pattern", id=identifier, width=8, height=8, patternUnits="userSpaceOnUse")
        node(tile, "rect", width=8, height=8, fill=mark.colour)
        node(tile, "path", d=mark.pattern, stroke=mark.ink, stroke_width=1, stroke_opacity=".45", fill="none")
    return f"url(#{identifier})"


def heat(fraction: float) -> tuple[str, str]:
    """The viridis colour at a fraction of the scale, and the ink that reads on it."""
    position = min(max(fraction, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(position), len(_VIRIDIS) - 2)
    weight = position - low
    rgb = [round(a + weight * (b - a)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*rgb), "#fff" if fraction < 0.55 else "#000"


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of the powers of ten that enclose positive values, at least one decade apart."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return -4, 0
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    # The lowest bar still needs a height.
    low -= math.log10(min(positive)) - low < 0.15
    return low, max(high, low + 1)


def even_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values between `low` and `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next((m * scale for m in (1, 2, 5, 10) if m * scale >= raw), 10 * scale)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
