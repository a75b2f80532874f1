"""An append-only file of JSON lines in which nothing that was acknowledged is ever lost.

A line counts as acknowledged once `Journal.append` has returned: by then it is written and fsynced.
All writers of a folder share one file, whether they are threads, processes or several recorders:
each append opens the file, takes an exclusive `flock`, cuts a torn tail that a killed writer may
have left, writes, fsyncs and closes. At some runs a second the cost (about a millisecond) does not
show, and there is no descriptor to inherit by a fork, no state to rebuild after a crash, and no
writer that goes on writing into a file that was compacted away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoopt.errors import MetaDatasetError

try:
    import fcntl
except ImportError:  # not a POSIX system: journals can be read there, not written
    fcntl = None

JOURNAL_FOLDER = "journal"
"""Name of the sub-folder that holds journals, locks and temporary files, none of them for git."""

_FLOAT_KEY = "__float__"
_BLOCK_BYTES = 1 << 16


class Journal:
    """The journal of a folder, opened for appending.

    Opening creates `<folder>/journal/<name>.jsonl` where it is missing and cuts a torn tail. The
    object holds nothing but the path, so it can be pickled to a worker process.

    Args:
        folder: Folder of the recorded trials, such as `"meta_data"`.
        name: Name of the journal.

    Raises:
        MetaDatasetError: If the folder cannot be written.

    >>> import tempfile
    >>> journal = Journal(tempfile.mkdtemp())
    >>> journal.append({"loss": float("inf")})
    >>> journal.read()
    [{'loss': inf}]
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "trials") -> None:
        """Create the file where it is missing, and cut a torn tail."""
        self.path = Path(folder) / JOURNAL_FOLDER / f"{name}.jsonl"
        with _explained(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            existed = self.path.exists()
            with _locked(self.path, os.O_RDWR | os.O_CREAT) as fd:
                _cut_torn_tail(fd)
            if not existed:
                fsync_folder(self.path.parent)
                fsync_folder(self.path.parent.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Nothing; when this returns, the record is on the disk.

        Infinities and NaN are kept; tuples come back as lists and NumPy values as Python's.

        Raises:
            MetaDatasetError: If the record is not made of JSON-compatible values, or the disk is
                full, or the file cannot be written. What was acknowledged before stays intact.
        """
        line = _encode(record)
        with _explained(self.path, "written"), _locked(self.path, os.O_RDWR | os.O_CREAT) as fd:
            end = _cut_torn_tail(fd)
            try:
                os.lseek(fd, end, os.SEEK_SET)
                view = memoryview(line)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except BaseException:
                # Half a line must not stay, be it of a full disk or of Ctrl-C between two writes. If
                # this fails too, the next append or opening cuts it.
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise

    def read(self) -> list[dict[str, Any]]:
        """All acknowledged records, in the order in which they were appended.

        Raises:
            MetaDatasetError: If the file cannot be read, or a line in it is damaged.
        """
        return read_journal(self.path)

    @contextlib.contextmanager
    def drain(self) -> Iterator[list[dict[str, Any]]]:
        """A context with all records, which empties the journal if its block ends without an error.

        Writers wait meanwhile, so no record falls between reading and emptying. The block must have
        put the records safely elsewhere; a crash in between leaves them in both places.

        Raises:
            MetaDatasetError: If the file cannot be read or written, or a line in it is damaged.
        """
        with _explained(self.path, "written"), _locked(self.path, os.O_RDWR | os.O_CREAT) as fd:
            end = _cut_torn_tail(fd)
            yield _decode(os.pread(fd, end, 0) if end else b"", self.path)
            os.ftruncate(fd, 0)
            os.fsync(fd)


def journal_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The journals of a folder in name order, those brought over from other machines included."""
    return sorted((Path(folder) / JOURNAL_FOLDER).glob("*.jsonl"))


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All acknowledged records of a journal file, which may be read-only; a torn tail is left out.

    Raises:
        MetaDatasetError: If the file cannot be read, or a line in it is damaged.
    """
    path = Path(path)
    with _explained(path, "read"), _locked(path, os.O_RDONLY) as fd:
        blocks = []
        while block := os.read(fd, 1 << 20):
            blocks.append(block)
    data = b"".join(blocks)
    return _decode(data[: data.rfind(b"\n") + 1], path)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], name: str) -> Iterator[None]:
    """A context that holds a named lock of the folder against all other processes and threads.

    Raises:
        MetaDatasetError: If the lock file cannot be written.
    """
    path = Path(folder) / JOURNAL_FOLDER / f"{name}.lock"
    with _explained(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, os.O_RDWR | os.O_CREAT):
            yield


def fsync_folder(folder: Path) -> None:
    """Nothing; when this returns, the names of new and renamed files in the folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of the file under a lock: shared for reading, else exclusive."""
    reading = flags == os.O_RDONLY
    if fcntl is None and not reading:
        raise MetaDatasetError("recording needs a POSIX system (file locks), such as Linux or macOS")
    # A descriptor of its own for every lock: flock does not exclude holders of one description.
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_SH if reading else fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _cut_torn_tail(fd: int) -> int:
    """The size of the file after cutting what follows its last newline; the lock must be held."""
    size = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    end, start = 0, size
    while start > 0 and end == 0:
        start = max(0, start - _BLOCK_BYTES)
        newline = os.pread(fd, _BLOCK_BYTES, start).rfind(b"\n", 0, size - start)
        end = start + newline + 1 if newline >= 0 else 0
    os.ftruncate(fd, end)
    os.fsync(fd)
    return end


@contextlib.contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    """A context that turns an OSError into a MetaDatasetError saying what to do."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space, then run again",
        errno.EDQUOT: "the disk quota is used up: free some space, then run again",
        errno.EROFS: "the file system is read-only: record into another folder",
        errno.EACCES: "you have no permission there: record into another folder",
        errno.EPERM: "you have no permission there: record into another folder",
        errno.ENOLCK: "the file system has no file locks: record into a folder on a local disk",
    }
    try:
        yield
    except OSError as error:
        hint = hints.get(error.errno or 0, "check the folder, then run again")
        raise MetaDatasetError(
            f"{path} cannot be {verb} ({os.strerror(error.errno) if error.errno else error}); {hint}. "
            "What was recorded before is intact."
        ) from error


def _encode(record: Mapping[str, Any]) -> bytes:
    """The record as one line of strict JSON, which has no word for infinities and NaN."""
    try:
        text = json.dumps(_plain(record), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise MetaDatasetError(f"a record of the journal must be made of JSON values: {error}") from error
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    """The value with non-finite floats tagged, and NumPy's values turned into Python's."""
    if isinstance(value, float):
        # NumPy's float64 is a float too, hence float() before repr().
        return float(value) if math.isfinite(value) else {_FLOAT_KEY: repr(float(value))}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _decode(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The records in the complete lines of a journal."""
    records = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line, object_hook=_tagged_float)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise MetaDatasetError(
                f"line {number} of {path} is damaged ({error}); delete that line to keep the others"
            ) from error
        records.append(record)
    return records


def _tagged_float(value: dict[str, Any]) -> Any:
    """The float that `_plain` tagged, or the dict as it is."""
    return float(value[_FLOAT_KEY]) if len(value) == 1 and _FLOAT_KEY in value else value
