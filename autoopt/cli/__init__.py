"""The `autoopt` command: one module a command, each imported when it runs.

Exit codes: 0 done; 1 the input cannot be used, or `doctor` found a problem; 2 a wrong option or argument;
3 a recording stopped before everything was recorded; 130 interrupted.
"""

from autoopt.cli.group import main

__all__ = ["main"]
