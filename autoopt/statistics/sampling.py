"""Which steps and which coordinates the warm-up collector looks at: pure functions, nothing stored.

A gradient is seen as a matrix (first dimension by all others). A block of it is sampled at regular
strides: a strided block is a view, so sampling needs no index tensors, no storage and no
synchronisation. Strides have no common factor with the size they step over, so a sample never falls
on the same coordinate of every attention head or image row; offsets follow from a hash of the
parameter's name and the seed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

NUM_SLOTS = 8
"""Snapshots of a layer that are kept, in pairs of consecutive steps; a multiple of 4."""

PAIR_SPACING = 8
"""Steps between the starts of two pairs in the first `NUM_SLOTS / 2 * PAIR_SPACING` steps."""

BLOCK_COORDINATES = 24 * 24
"""Coordinates sampled of a matrix."""

VECTOR_COORDINATES = 64
"""Coordinates sampled of a long vector."""

WHOLE_VECTOR = 128
"""Longest vector that is taken whole: reading it then costs no call at all."""

EMBEDDING_COLUMNS = 4
"""Columns sampled of an embedding: few, for most rows are untouched and rows are what counts."""

COUNTED_ROWS = 2048
"""Rows of an embedding for which touches are counted."""


@dataclass(frozen=True)
class SampleLayout:
    """Where the sampled block of one parameter lies in its matrix view.

    Attributes:
        size: `(rows, columns)` of the matrix view.
        rows: `(number, stride, offset)` of the sampled rows.
        columns: `(number, stride, offset)` of the sampled columns.
        counted: `(number, stride, offset)` of the rows whose touches are counted, `(0, 1, 0)`
            where the parameter is no embedding.
        num_coordinates: Sampled coordinates.
        whole: Whether the sample is the whole parameter.
    """

    size: tuple[int, int]
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    counted: tuple[int, int, int]
    num_coordinates: int
    whole: bool


@lru_cache(maxsize=65536)
def sample_layout(name: str, shape: tuple[int, ...], embedding: bool, seed: int = 0) -> SampleLayout:
    """The sampled block of a parameter: a function of its arguments alone, so never stored.

    >>> layout = sample_layout("encoder.weight", (512, 2048), embedding=False)
    >>> layout.rows[0], layout.columns[0], math.gcd(layout.columns[1], 2048)
    (24, 24, 1)
    """
    num_rows = shape[0] if len(shape) > 1 else 1
    num_columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    words = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(3)]
    if len(shape) < 2:
        rows, columns = 1, num_columns if num_columns <= WHOLE_VECTOR else VECTOR_COORDINATES
    else:
        target = EMBEDDING_COLUMNS if embedding else math.isqrt(BLOCK_COORDINATES)
        columns = min(num_columns, max(target, BLOCK_COORDINATES // max(num_rows, 1)))
        rows = min(num_rows, BLOCK_COORDINATES // max(columns, 1))
        columns = min(num_columns, BLOCK_COORDINATES // max(rows, 1))
    counted = min(num_rows, COUNTED_ROWS) if embedding else 0
    return SampleLayout(
        (num_rows, num_columns),
        _strided(num_rows, rows, words[0]),
        _strided(num_columns, columns, words[1]),
        _strided(num_rows, counted, words[2]) if counted else (0, 1, 0),
        num_coordinates=rows * columns,
        whole=rows == num_rows and columns == num_columns,
    )


def _strided(size: int, number: int, word: int) -> tuple[int, int, int]:
    stride = max(1, size // max(number, 1))
    if number < size:
        while math.gcd(stride, size) != 1:
            stride -= 1
    span = (max(number, 1) - 1) * stride + 1
    return number, stride, word % (size - span + 1) if size >= span else 0


def slot_of(step: int) -> int | None:
    """The history slot that a 0-based warm-up step is kept in, None where it is not looked at.

    Steps come in pairs `(8 j, 8 j + 1)`, so that consecutive gradients can be compared. The first
    `P` pairs are all kept; then every second one takes the place of an odd one, then every fourth,
    and so on. At any time the kept pairs are spread evenly from the first step to now, however long
    the warm-up turns out to be, and looking gets rarer as it goes on.

    >>> [step for step in range(70) if slot_of(step) is not None]
    [0, 1, 8, 9, 16, 17, 24, 25, 32, 33, 48, 49, 64, 65]
    >>> slot_of(32) == slot_of(8)
    True
    """
    pair, second = divmod(step, PAIR_SPACING)
    if second > 1:
        return None
    half = NUM_SLOTS // 2
    while pair >= half:
        stride = 2
        while half * stride <= pair:
            stride *= 2
        if pair % stride:
            return None
        # The pair that this one replaces: an odd multiple of the former stride, from the front.
        pair = pair - half * stride // 2 + stride // 2
    return 2 * pair + second
