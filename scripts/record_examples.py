"""Run the examples of the gallery and keep what they print, for the site to show beside their source.

    python scripts/record_examples.py
    python scripts/record_examples.py image_cnn gpu_launch

Each is run in full, one after the other, on one thread; the site itself runs nothing. Run it again when the
default or the selector has changed.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
OUTPUT = ROOT / "docs" / "example-output"


def has_title(path: Path) -> bool:
    """Whether a script's docstring opens with an underlined title, as a page of the gallery does."""
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    return len(lines) > 1 and len(lines[1]) >= len(lines[0]) and set(lines[1]) == {"="}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after running the examples: 1 if one of them failed."""
    known = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if has_title(path)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"examples to run (default all: {', '.join(known)})")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no example of the gallery is named {unknown[0]!r}; it has {', '.join(known)}")
    OUTPUT.mkdir(exist_ok=True)
    failed = 0
    for name in options.names or known:
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        print(f"{name}: {time.monotonic() - start:.0f} s, exit code {done.returncode}")
        if done.returncode:
            failed = 1
            print(done.stderr, file=sys.stderr)
        else:
            (OUTPUT / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
