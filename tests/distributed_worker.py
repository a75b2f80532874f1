"""Runs checks on several ranks: started once, it imports once and forks the ranks of every request.

`Launcher` is the tests' side, `main` the other one. Requests and answers are lines of JSON.
"""

import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

DEADLINE = 60.0
"""Seconds after which the ranks of a request are killed."""

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
"""Signals by which a rank dies in compiled code: gloo's own thread does, once in some hundred runs."""

IMPORTED_ONCE = (
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "autoopt.api",
    "pytorch_optimizer",
)
"""What ranks would each import on first use, at some seconds each time."""


class Launcher:
    """A process that forks ranks on request; close it, or leave its `with` block, to end it."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    def run(self, check, ranks=2, timeout=20.0, may_die=(), **arguments):
        """What `check` ("module:function") returned on every rank, None for ranks that may die and did.

        Args:
            check: Called as `function(rank, **arguments)` on every rank of a gloo group.
            ranks: How many.
            timeout: Seconds of the process group's timeout.
            may_die: Ranks that need not return.
            **arguments: JSON values.
        """
        request = {"check": check, "ranks": ranks, "timeout": timeout, "arguments": arguments}
        answer = self._ask(request)
        if any(one.get("crashed") for one in answer):
            print(f"a rank of {check} crashed outside of Python; all are run once more", file=sys.stderr)
            answer = self._ask(request)
        failed = {r: a["error"] for r, a in enumerate(answer) if "error" in a and r not in may_die}
        assert not failed, "\n".join(f"rank {rank}:\n{text}" for rank, text in failed.items())
        return [one.get("result") for one in answer]

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main():
    """Answer requests until the input ends."""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    for line in sys.stdin:
        request = json.loads(line)
        module, _, name = request["check"].partition(":")
        function = getattr(importlib.import_module(module), name)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_ranks(function, request, Path(folder))), file=answers, flush=True)


def run_ranks(function, request, folder):
    """Fork the ranks, wait for them, and read what each has left."""
    waiting, crashed = {}, {}
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            run_rank(function, request, folder, rank)
        waiting[pid] = rank
    end = time.monotonic() + DEADLINE
    try:
        while waiting and time.monotonic() < end:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid and os.WIFSIGNALED(status) and os.WTERMSIG(status) in CRASHES:
                crashed[waiting[pid]] = signal.Signals(os.WTERMSIG(status)).name
            if pid:
                waiting.pop(pid, None)
            else:
                time.sleep(0.005)
    finally:
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    late = set(waiting.values())
    answers = []
    for rank in range(request["ranks"]):
        path = folder / f"{rank}.json"
        lost = f"killed after {DEADLINE:.0f} s" if rank in late else "ended without an answer"
        answers.append(json.loads(path.read_text()) if path.exists() else {"error": lost})
        if rank in crashed:
            answers[-1] = {"error": f"died of {crashed[rank]}", "crashed": True}
    return answers


def run_rank(function, request, folder, rank):
    """One rank: join the group, run the check, write the answer, end."""
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=request["ranks"],
            timeout=datetime.timedelta(seconds=request["timeout"]),
        )
        answer = {"result": function(rank, **request["arguments"])}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    draft = folder / f"{rank}.draft"
    draft.write_text(json.dumps(answer))
    draft.rename(folder / f"{rank}.json")
    os._exit(0)


if __name__ == "__main__":
    main()
