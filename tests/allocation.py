"""How much memory a piece of code takes at its peak, measured by the process and by each operation."""

from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_STATUS = Path("/proc/self/status")


class LargestAllocation(TorchDispatchMode):
    """Records the largest tensor storage, in bytes, that any operation newly makes.

    Sparse tensors count with their indices and values. What an operation takes inside and gives back
    is not seen here; `peak_resident_bytes` sees it.
    """

    def __init__(self):
        super().__init__()
        self.num_bytes = 0
        self.num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _dense([*args, *(kwargs or {}).values()])
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.num_operations += 1
        result = func(*args, **(kwargs or {}))
        for tensor in _dense((result,)):
            if tensor.untyped_storage().data_ptr() not in known:
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


def _dense(values):
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _dense(value)
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
            found.append(value)
    return found


def peak_resident_bytes(function):
    """Bytes by which the process's resident memory peaks above its start while `function` runs.

    None where the system does not tell.
    """
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")  # the high-water mark starts again from here
    before = _field("VmRSS")
    function()
    return _field("VmHWM") - before


def _field(name):
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
