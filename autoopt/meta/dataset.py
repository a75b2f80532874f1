"""The meta-dataset: recorded trials and meta-features, as Parquet files and as pandas tables.

On disk, below one folder:

    trials/<round>-<number>.parquet   trials in shards of at most `SHARD_ROWS`
    features.parquet                  meta-features, one row a (task, seed, role group)
    journal/                          what was recorded since the last `compact` (not for git)

Only the last shard of a round is ever rewritten, and only until it is full, so that version control
stores few new bytes a commit.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoopt.errors import MetaDatasetError
from autoopt.meta import parquet
from autoopt.meta.journal import JOURNAL_FOLDER, Journal, folder_lock, journal_paths, read_journal
from autoopt.meta.trial import TrialStatus

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHARD_ROWS = 4000

_FEATURE_ID = ["task", "seed", "group"]


@dataclass(frozen=True, eq=False)
class MetaDataset:
    """Recorded trials and meta-features.

    Attributes:
        trials: One row a trial with the fields of `Trial`; curves are float32 arrays.
        features: One row a (task, seed, role group): `task`, `seed`, `group`, `family`, `source`,
            then a float64 column a feature, NaN where it was not measured.
    """

    trials: pd.DataFrame
    features: pd.DataFrame

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            MetaDatasetError: If a column is missing.
        """
        wanted = {
            "trials": (self.trials, [name for name, _ in parquet.TRIAL_COLUMNS]),
            "features": (self.features, parquet.FEATURE_KEYS),
        }
        for name, (frame, columns) in wanted.items():
            missing = [column for column in columns if column not in frame.columns]
            if missing:
                raise MetaDatasetError(f"the table of {name} lacks the columns {', '.join(missing)}")

    @classmethod
    def load(cls, folder: str | os.PathLike[str] = "meta_data") -> MetaDataset:
        """The data set of a folder, each trial once, what is not yet compacted included.

        A trial recorded twice (by two recorders at a time) counts once, and one that failed is
        replaced by its later success. The order is that of the shards' names, then of recording.

        Raises:
            MetaDatasetError: If the folder holds no trials, or a file in it is damaged or of a
                newer schema.
        """
        data = cls.read(folder)
        if data.trials.empty and data.features.empty:
            raise MetaDatasetError(f"{folder} holds no recorded trials; record some with scripts/build_meta_dataset.py")
        return data

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> MetaDataset:
        """Like `load`, but a folder that is empty or missing gives an empty data set.

        Raises:
            MetaDatasetError: If a file in the folder is damaged or of a newer schema.
        """
        folder = Path(folder)
        # The journals first: what a compaction moves in between is then read twice, never missed.
        trials, features = _tables(journal_paths(folder))
        trials = _concat([*(parquet.read_table(path, "trials") for path in _shards(folder)), trials])
        if (folder / "features.parquet").exists():
            features = _merged_features(parquet.read_table(folder / "features.parquet", "features"), features)
        return cls(_unique(trials).to_pandas(), features.to_pandas())

    def joined(self, other: MetaDataset) -> MetaDataset:
        """The trials and features of both data sets, each once; where they differ, `other` counts."""
        import pandas as pd

        trials = pd.concat([self.trials, other.trials]).drop_duplicates("trial_id", keep="last")
        features = pd.concat([self.features, other.features]).drop_duplicates(_FEATURE_ID, keep="last")
        return MetaDataset(trials.reset_index(drop=True), features.reset_index(drop=True))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Nothing; adds to a folder's Parquet files what is not in them yet.

        Trials in the folder stay (but a failed one is replaced by its success); features of the
        same (task, seed, group) are replaced.

        Raises:
            MetaDatasetError: If the tables do not fit the schema, or the folder cannot be written.
        """
        import pyarrow as pa

        folder = Path(folder)
        names = [name for name, _ in parquet.TRIAL_COLUMNS]
        try:
            trials = pa.Table.from_pandas(
                self.trials[names], parquet.trial_schema(), preserve_index=False
            ).replace_schema_metadata(None)
            features = pa.Table.from_pandas(
                self.features, parquet.feature_schema(self.features.columns), preserve_index=False
            ).replace_schema_metadata(None)
        except (pa.ArrowException, TypeError) as error:
            raise MetaDatasetError(f"the tables do not fit the schema: {error}") from error
        with folder_lock(folder, "compact"):
            _store(folder, trials, features)

    @staticmethod
    def compact(folder: str | os.PathLike[str] = "meta_data") -> int:
        """The number of journal records moved into Parquet files; the journals are empty then.

        Recorders may go on meanwhile. A crash at any moment loses nothing: records leave the
        journal only after the Parquet files with them are on the disk.

        Raises:
            MetaDatasetError: If a journal is damaged, or the folder cannot be written.
        """
        folder = Path(folder)
        with folder_lock(folder, "compact"), contextlib.ExitStack() as stack:
            for leftover in (folder / JOURNAL_FOLDER).glob("*.tmp"):
                leftover.unlink(missing_ok=True)
            records = [
                record
                for path in journal_paths(folder)
                for record in stack.enter_context(Journal(folder, path.stem).drain())
            ]
            _store(folder, *_split(records))
        return len(records)


def trial_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The journal record of a trial's row."""
    return {"kind": "trial", "row": dict(row)}


def features_record(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The journal record of the feature rows of one (task, seed)."""
    version = parquet.FEATURES_SCHEMA_VERSION
    return {"kind": "features", "schema_version": version, "rows": [dict(row) for row in rows]}


def _tables(paths: Iterable[Path]) -> tuple[pa.Table, pa.Table]:
    """The trials and the features in journals."""
    return _split(record for path in paths for record in read_journal(path))


def _split(records: Iterable[Mapping[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """The trials and the features among journal records."""
    import pyarrow as pa

    rows: dict[str, list[Mapping[str, Any]]] = {"trial": [], "features": []}
    for record in records:
        try:
            if record["kind"] == "trial":
                rows["trial"].append(record["row"])
            else:
                rows[record["kind"]].extend(record["rows"])
        except KeyError as error:
            raise MetaDatasetError(
                f"a journal holds a record that this autoopt does not know ({error}); upgrade autoopt"
            ) from error
    columns = dict.fromkeys(name for row in rows["features"] for name in row)
    try:
        features = pa.Table.from_pylist(rows["features"], parquet.feature_schema(columns))
    except pa.ArrowException as error:
        raise MetaDatasetError(f"recorded features do not fit the schema: {error}") from error
    empty = parquet.feature_schema(()).empty_table()
    return parquet.trial_table(rows["trial"]), _merged_features(empty, features)


def _store(folder: Path, trials: pa.Table, features: pa.Table) -> None:
    """Nothing; adds the tables to the folder's Parquet files. The compaction lock must be held."""
    shards = _shards(folder)
    stored: dict[str, bool] = {}
    for path in shards:
        known = parquet.read_table(path, "trials").select(["trial_id", "status"]).to_pydict()
        for identity, status in zip(known["trial_id"], known["status"], strict=True):
            stored[identity] = stored.get(identity, False) or status != TrialStatus.FAILED
    rows: dict[str, list[int]] = {}
    trials = _unique(trials)
    columns = trials.select(["trial_id", "status", "round"]).to_pydict()
    for row, (identity, status, round_name) in enumerate(zip(*columns.values(), strict=True)):
        # What is stored stays, but for a failure that has become a success.
        if identity not in stored or (status != TrialStatus.FAILED and not stored[identity]):
            word = re.sub(r"[^A-Za-z0-9_.-]+", "_", round_name) or "unnamed"
            rows.setdefault(word, []).append(row)
    for word, chosen in rows.items():
        _add_to_shards(folder, word, trials.take(chosen), [p for p in shards if _shard_round(p) == word])
    if features.num_rows:
        path = folder / "features.parquet"
        if path.exists():
            features = _merged_features(parquet.read_table(path, "features"), features)
        parquet.write_table(features, path, "features", folder)


def _add_to_shards(folder: Path, word: str, new: pa.Table, shards: list[Path]) -> None:
    """Nothing; fills the last of a round's shards, then begins new ones."""
    import pyarrow as pa

    number = 0
    if shards:
        number = _shard_number(shards[-1])
        last = parquet.read_table(shards[-1], "trials")
        if last.num_rows < SHARD_ROWS:
            new = pa.concat_tables([last, new])
        else:
            number += 1
    for start in range(0, new.num_rows, SHARD_ROWS):
        path = folder / "trials" / f"{word}-{number:03d}.parquet"
        parquet.write_table(new.slice(start, SHARD_ROWS), path, "trials", folder)
        number += 1


def _shards(folder: Path) -> list[Path]:
    """The shards of a folder by round, then by number."""
    paths = (folder / "trials").glob("*.parquet")
    return sorted(paths, key=lambda path: (_shard_round(path), _shard_number(path)))


def _shard_round(path: Path) -> str:
    """The round in the name of a shard."""
    return path.stem.rpartition("-")[0]


def _shard_number(path: Path) -> int:
    """The number in the name of a shard."""
    word = path.stem.rpartition("-")[2]
    if not re.fullmatch(r"\d+", word):
        raise MetaDatasetError(f"{path} is not named <round>-<number>.parquet; move it elsewhere")
    return int(word)


def _concat(tables: list[pa.Table]) -> pa.Table:
    """The tables one after the other, an empty table of trials where there is none."""
    import pyarrow as pa

    return pa.concat_tables(tables) if tables else parquet.trial_schema().empty_table()


def _unique(trials: pa.Table) -> pa.Table:
    """Each trial once: its first row that did not fail, else its first row."""
    chosen: dict[str, int] = {}
    statuses = trials["status"].to_pylist()
    for row, identity in enumerate(trials["trial_id"].to_pylist()):
        kept = chosen.setdefault(identity, row)
        if statuses[kept] == TrialStatus.FAILED != statuses[row]:
            chosen[identity] = row
    return trials if len(chosen) == trials.num_rows else trials.take(sorted(chosen.values()))


def _merged_features(old: pa.Table, new: pa.Table) -> pa.Table:
    """Both tables in one, with the columns of both; the last row of a (task, seed, group) counts."""
    import pyarrow as pa

    schema = parquet.feature_schema(dict.fromkeys([*old.column_names, *new.column_names]))
    table = pa.concat_tables([old, new], promote_options="default").select(schema.names).cast(schema)
    keys = zip(*(table[name].to_pylist() for name in _FEATURE_ID), strict=True)
    last = {key: row for row, key in enumerate(keys)}
    kept = table if len(last) == table.num_rows else table.take(sorted(last.values()))
    return kept.sort_by([(name, "ascending") for name in _FEATURE_ID])
