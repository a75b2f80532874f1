"""The script that measures what a step costs prints a table with every part, and equal state."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_step.py"


def test_every_part_is_measured_on_the_small_model():
    parts = ["adamw", "mixed", "muon", "warmup", "construction"]
    command = [sys.executable, "-W", "error", str(SCRIPT), "--sizes", "60k", "--repeats", "2", "--threads", "1"]
    done = subprocess.run([*command, "--parts", *parts], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ") and "60k" in line]
    assert len(rows) == 6  # warm-up has two
    assert all(0.01 < float(row[3]) < 1000 for row in rows)
    pattern = r"State of .* at 60k: ([\d,]+) bytes; of its kernels called separately: ([\d,]+) bytes"
    ours, theirs = re.search(pattern, done.stdout).groups()
    assert ours == theirs
