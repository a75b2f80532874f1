"""Ctrl-C in child processes, however the tests themselves were started."""

import signal


def heed_interrupts():
    """Nothing; lets this process take Ctrl-C again, which one started in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
