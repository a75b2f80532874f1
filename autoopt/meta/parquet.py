"""One Parquet file of the meta-dataset: a versioned schema, written atomically, checked when read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoopt.errors import MetaDatasetError
from autoopt.meta.journal import JOURNAL_FOLDER, fsync_folder
from autoopt.meta.trial import TRIAL_SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

FEATURES_SCHEMA_VERSION = 1

TRIAL_COLUMNS: tuple[tuple[str, str], ...] = (
    ("trial_id", "string"),
    ("task", "string"),
    ("family", "string"),
    ("source", "string"),
    ("batch_size", "int64"),
    ("budget_steps", "int64"),
    ("width", "int64"),
    ("num_parameters", "int64"),
    ("plan", "string"),
    ("plan_name", "string"),
    ("round", "string"),
    ("group", "string"),
    ("change", "string"),
    ("paired_with", "string"),
    ("seed", "int64"),
    ("status", "string"),
    ("best_val_loss", "float64"),
    ("final_val_loss", "float64"),
    ("best_step", "int64"),
    ("diverged_step", "int64"),
    ("val_steps", "list<int32>"),
    # Curves are for plots and for times to a target; the run's value is the float64 best_val_loss.
    ("val_losses", "list<float32>"),
    ("train_losses", "list<float32>"),
    ("step_seconds", "float64"),
    ("optimizer_seconds", "float64"),
    ("state_bytes", "int64"),
    ("error", "string"),
    ("versions", "string"),
    ("recorded_at", "string"),
    ("schema_version", "int64"),
    ("mode", "string"),
    ("selection_seconds", "float64"),
)
"""Column -> Arrow type of recorded trials, in the order of the fields of `Trial`."""

FEATURE_KEYS: tuple[str, ...] = ("task", "seed", "group", "family", "source")
"""The columns of the features table that are no features; all others are float64."""

_KIND_KEY = b"autoopt.kind"
_VERSION_KEY = b"autoopt.schema_version"
_VERSIONS = {"trials": TRIAL_SCHEMA_VERSION, "features": FEATURES_SCHEMA_VERSION}


def trial_schema() -> pa.Schema:
    """The Arrow schema of recorded trials."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "list<int32>": pa.list_(pa.int32()),
        "list<float32>": pa.list_(pa.float32()),
    }
    return pa.schema([(name, types[word]) for name, word in TRIAL_COLUMNS])


def feature_schema(columns: Iterable[str]) -> pa.Schema:
    """The Arrow schema of a features table with these columns: the keys first, then the features."""
    import pyarrow as pa

    keys = [(key, pa.int64() if key == "seed" else pa.string()) for key in FEATURE_KEYS]
    return pa.schema(keys + [(name, pa.float64()) for name in columns if name not in FEATURE_KEYS])


def trial_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The rows of `Trial.to_row`, of any schema version up to this one, as a table of this one.

    Raises:
        MetaDatasetError: If a row is of a newer schema, or its values do not fit.
    """
    import pyarrow as pa

    by_version: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_version.setdefault(int(row.get("schema_version", 0)), []).append(row)
    tables = [trial_schema().empty_table()]
    for version, group in by_version.items():
        try:
            if version == TRIAL_SCHEMA_VERSION:
                tables.append(pa.Table.from_pylist(group, trial_schema()))
            else:
                tables.append(migrated(pa.Table.from_pylist(group), version, "a journal"))
        except (pa.ArrowException, OverflowError) as error:
            raise MetaDatasetError(f"recorded trials do not fit the schema: {error}") from error
    return pa.concat_tables(tables)


def migrated(table: pa.Table, version: int, where: str) -> pa.Table:
    """The trials of an older schema version as a table of the present one.

    Args:
        table: Trials of that version.
        version: Schema version of the table.
        where: What to call the table in an error.

    Raises:
        MetaDatasetError: If the version is newer than this autoopt knows, or columns are missing.
    """
    import pyarrow as pa

    if version > TRIAL_SCHEMA_VERSION:
        raise MetaDatasetError(_newer(where, version, TRIAL_SCHEMA_VERSION))
    for step in range(version, TRIAL_SCHEMA_VERSION):
        table = MIGRATIONS[step](table)
    schema = trial_schema()
    missing = [name for name in schema.names if name not in table.column_names]
    unknown = [name for name in table.column_names if name not in schema.names]
    if missing or unknown:
        what = f"lacks the columns {missing}" if missing else f"has the unknown columns {unknown}"
        raise MetaDatasetError(f"{where} {what} for trials of schema version {version}")
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise MetaDatasetError(f"{where} holds values that do not fit the schema: {error}") from error


def write_table(table: pa.Table, path: Path, kind: str, folder: Path) -> None:
    """Nothing; when this returns, the file is on the disk under its name, or the old one still is.

    Args:
        table: What to write.
        path: The file, replaced as a whole.
        kind: `"trials"` or `"features"`.
        folder: Folder of the meta-dataset, on the same file system: its journal folder takes the
            temporary file.

    Raises:
        MetaDatasetError: If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    marks = {_KIND_KEY: kind.encode(), _VERSION_KEY: str(_VERSIONS[kind]).encode()}
    temporary = folder / JOURNAL_FOLDER / f"{path.name}.{os.getpid()}.tmp"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A dictionary keeps thousands of repeated plans small, and makes columns of floats larger.
        # Splitting those into byte streams saves a tenth on the curves, nothing on features.
        words = [field.name for field in table.schema if pa.types.is_string(field.type)]
        floats = [f"{name}.list.element" for name, word in TRIAL_COLUMNS if word == "list<float32>"]
        write: Any = pq.write_table  # its stubs know no lists of columns
        write(
            table.replace_schema_metadata(marks),
            temporary,
            compression="zstd",
            compression_level=9,
            use_dictionary=words,
            use_byte_stream_split=floats if kind == "trials" else False,
            dictionary_pagesize_limit=1 << 24,
        )
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except (OSError, pa.ArrowException) as error:
        raise MetaDatasetError(
            f"{path} cannot be written ({error}); free some space or choose another folder. "
            "What was recorded before is intact."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_table(path: Path, kind: str) -> pa.Table:
    """The table in a file, trials migrated to the present schema version.

    Raises:
        MetaDatasetError: If the file is damaged, is not of that kind, or is of a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise MetaDatasetError(
            f"{path} cannot be read ({error}); restore it from version control or record it again"
        ) from error
    marks = table.schema.metadata or {}
    found = marks.get(_KIND_KEY, b"").decode(errors="replace")
    word = marks.get(_VERSION_KEY, b"").decode(errors="replace")
    if found != kind or not word.isdecimal():
        raise MetaDatasetError(f"{path} is no file of {kind} written by autoopt; move it elsewhere")
    version = int(word)
    table = table.replace_schema_metadata(None)
    if version > _VERSIONS[kind]:
        raise MetaDatasetError(_newer(str(path), version, _VERSIONS[kind]))
    return migrated(table, version, str(path)) if kind == "trials" else table


def _newer(where: str, found: int, known: int) -> str:
    """The message about a schema that this autoopt is too old for."""
    return (
        f"{where} has schema version {found}, this autoopt reads up to {known}; "
        "upgrade autoopt (pip install --upgrade autoopt)"
    )


def _from_version_0(table: pa.Table) -> pa.Table:
    """Version 1 added the cost columns, the run's mode and the version itself to version 0."""
    import pyarrow as pa

    added = {
        "optimizer_seconds": pa.scalar(0.0),
        "state_bytes": pa.scalar(0),
        "mode": pa.scalar("plan"),
        "schema_version": pa.scalar(1),
    }
    for name, value in added.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table


def _from_version_1(table: pa.Table) -> pa.Table:
    """Version 2 added the seconds that choosing took."""
    import pyarrow as pa

    if "schema_version" in table.column_names:
        number = table.column_names.index("schema_version")
        table = table.set_column(number, "schema_version", pa.repeat(pa.scalar(2), table.num_rows))
    return table.append_column("selection_seconds", pa.repeat(pa.scalar(0.0), table.num_rows))


MIGRATIONS: dict[int, Callable[[pa.Table], pa.Table]] = {0: _from_version_0, 1: _from_version_1}
"""Schema version -> what turns trials of that version into those of the next one."""
