import errno
import math
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from autoopt.errors import MetaDatasetError
from autoopt.meta.journal import Journal, folder_lock, journal_paths, read_journal


def test_records_come_back_in_order_and_as_they_were(tmp_path):
    records = [{"n": n, "text": "a\nb ä", "list": [1, 2.5, None], "flag": True} for n in range(5)]
    journal = Journal(tmp_path)
    for record in records:
        journal.append(record)
    assert journal.read() == records
    assert Journal(tmp_path).read() == records
    assert journal_paths(tmp_path) == [journal.path]


def test_non_finite_floats_and_numpy_values_survive_in_strict_json(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"a": math.inf, "b": [-math.inf, math.nan, 1e-310], "c": (1, 2), "d": np.float64(math.inf)})
    journal.append({"x": np.float32(0.5), "y": np.arange(3), "z": np.int64(7), "w": np.array([math.nan])})
    text = journal.path.read_text()
    assert "Infinity" not in text and "NaN" not in text
    first, second = journal.read()
    assert first["a"] == math.inf and first["d"] == math.inf and first["c"] == [1, 2]
    assert first["b"][0] == -math.inf and math.isnan(first["b"][1]) and first["b"][2] == 1e-310
    assert second["x"] == 0.5 and second["y"] == [0, 1, 2] and second["z"] == 7 and math.isnan(second["w"][0])


def test_a_record_that_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    with pytest.raises(MetaDatasetError, match="JSON"):
        journal.append({"n": object()})
    assert journal.read() == [{"n": 1}]


@pytest.mark.parametrize("tail", [b'{"n":', b"\x00" * 5000, b'{"text":"' + b"x" * 200_000])
def test_a_torn_tail_is_cut_when_opened_and_before_an_append(tmp_path, tail):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    with open(journal.path, "ab") as file:
        file.write(tail)
    assert read_journal(journal.path) == [{"n": 1}], "reading leaves the tail out"
    journal.append({"n": 2})
    assert journal.read() == [{"n": 1}, {"n": 2}]
    with open(journal.path, "ab") as file:
        file.write(tail)
    assert Journal(tmp_path).path.read_bytes() == b'{"n":1}\n{"n":2}\n'


def test_a_tail_without_any_complete_line_leaves_an_empty_journal(tmp_path):
    path = Journal(tmp_path).path
    path.write_bytes(b'{"n":' * 30_000)
    assert Journal(tmp_path).read() == []
    assert path.stat().st_size == 0


def test_a_damaged_line_is_named_not_dropped(tmp_path):
    journal = Journal(tmp_path)
    for n in range(3):
        journal.append({"n": n})
    journal.path.write_bytes(journal.path.read_bytes().replace(b'{"n":1}', b'{"n"#1}'))
    with pytest.raises(MetaDatasetError, match=r"line 2 of .*trials\.jsonl is damaged"):
        journal.read()


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_says_so_and_keeps_what_was_recorded(tmp_path, monkeypatch, failing):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    real_write = os.write

    def short_then_full(fd, data):
        if len(data) > 10:
            return real_write(fd, bytes(data[:10]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, short_then_full if failing == "write" else full)
        with pytest.raises(MetaDatasetError, match="disk is full.*recorded before is intact"):
            journal.append({"text": "does not fit any more"})
    assert journal.path.read_bytes() == b'{"n":1}\n'
    journal.append({"n": 2})
    assert journal.read() == [{"n": 1}, {"n": 2}]


def test_a_short_write_of_the_kernel_is_undone(tmp_path):
    """The file-size limit makes the kernel write a part of a line and then refuse, as a full disk does."""
    code = """
import resource, sys
from autoopt.errors import MetaDatasetError
from autoopt.meta.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
journal = Journal(sys.argv[1])
count = 0
try:
    while True:
        journal.append({"n": count, "text": "x" * 90})
        count += 1
except MetaDatasetError as error:
    print(count, error)
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    count, _, message = result.stdout.partition(" ")
    assert "cannot be written" in message and "intact" in message
    assert [record["n"] for record in Journal(tmp_path).read()] == list(range(int(count)))
    assert int(count) > 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MetaDatasetError, match=r"file.*cannot be written.*check the folder"):
        Journal(tmp_path / "file")
    with (
        pytest.raises(MetaDatasetError, match="cannot be written"),
        folder_lock(tmp_path / "file", "compact"),
    ):
        pass


def test_a_read_only_folder_can_be_read_and_refuses_appends(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    real_open = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(MetaDatasetError, match="file system is read-only: record into another folder"):
            journal.append({"n": 2})
        assert journal.read() == [{"n": 1}]
    assert journal.read() == [{"n": 1}]


def test_an_interrupt_between_two_writes_leaves_no_half_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    real_write = os.write

    def interrupted(fd, data):
        real_write(fd, bytes(data[:4]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append({"n": 2})
    assert journal.path.read_bytes() == b'{"n":1}\n'


def test_draining_empties_only_when_the_block_succeeds(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    with pytest.raises(RuntimeError), journal.drain() as records:
        assert records == [{"n": 1}]
        raise RuntimeError
    assert journal.read() == [{"n": 1}]
    with journal.drain() as records:
        assert records == [{"n": 1}]
    assert journal.read() == []
    with journal.drain() as records:
        assert records == []


def test_writers_wait_for_a_drain_and_lose_nothing(tmp_path):
    journal = Journal(tmp_path)
    drained = []

    def write(writer):
        for n in range(40):
            journal.append({"writer": writer, "n": n})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with journal.drain() as records:
            drained += records
    for thread in threads:
        thread.join()
    drained += journal.read()
    for writer in range(4):
        assert [record["n"] for record in drained if record["writer"] == writer] == list(range(40))


def test_processes_share_one_journal(tmp_path):
    code = """
import pickle, sys
journal = pickle.loads(bytes.fromhex(sys.argv[1]))
for n in range(60):
    journal.append({"writer": sys.argv[2], "n": n, "text": "x" * (n * 100)})
"""
    frozen = pickle.dumps(Journal(tmp_path)).hex()
    writers = [subprocess.Popen([sys.executable, "-c", code, frozen, str(writer)]) for writer in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    records = Journal(tmp_path).read()
    for writer in "012":
        assert [record["n"] for record in records if record["writer"] == writer] == list(range(60))


def test_reading_a_missing_journal_is_an_error_with_its_path(tmp_path):
    with pytest.raises(MetaDatasetError, match=r"nowhere\.jsonl cannot be read"):
        read_journal(tmp_path / "nowhere.jsonl")


def test_no_descriptor_stays_open(tmp_path):
    journal = Journal(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for n in range(20):
        journal.append({"n": n})
        read_journal(journal.path)
    assert len(os.listdir("/dev/fd")) == before
