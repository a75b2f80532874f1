"""The processes that train one model together, and the few collectives with which they agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoopt.errors import DistributedError

_DEVICE_ONLY = frozenset({"nccl", "xccl", "hccl", "cncl"})
"""Backends that take tensors of an accelerator and no others."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that decide alike: plain data that pickles, looked up again where it is used.

    Every method is a collective: all ranks call the same ones in the same order.

    Attributes:
        group_name: Name of a process group; None for the default group.
        alone: Whether this process decides for itself, whatever group it is in.

    Example:
        >>> Ranks().size  # without torch.distributed there is one rank
        1
    """

    group_name: str | None = None
    alone: bool = False

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """The ranks of a process group; None stands for this process alone."""
        if group is None:
            return cls(alone=True)
        name = getattr(group, "group_name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"process_group must be 'auto', None or a torch.distributed.ProcessGroup, got {type(group).__name__}"
            )
        return cls(name)

    @property
    def size(self) -> int:
        """How many ranks decide together; 1 where torch.distributed is not in use."""
        if self.alone or not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(self._group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank whose decision all take over."""
        return self.size == 1 or dist.get_rank(self._group) == 0

    @property
    def _group(self) -> Any:
        if self.group_name is None:
            return dist.group.WORLD
        try:
            return dist.distributed_c10d._resolve_process_group(self.group_name)  # pyright: ignore
        except Exception as error:  # torch raises a bare RuntimeError or ValueError, by version
            raise DistributedError(
                f"the process group {self.group_name!r} that select() was called with is gone; call select() in the "
                "process that trains, after torch.distributed.init_process_group"
            ) from error

    @property
    def _device(self) -> torch.device:
        if str(dist.get_backend(self._group)) not in _DEVICE_ONLY:
            return torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None  # the backend could not have been set up without one
        return torch.device(accelerator.type, torch.accelerator.current_device_index())

    def meet(self, where: str) -> None:
        """Wait until all ranks are here.

        Args:
            where: What they meet for, for the error.

        Raises:
            DistributedError: If they are not within the group's timeout; gloo names who is missing.
        """
        if self.size == 1:
            return
        group = self._group
        with explained(where):
            if str(dist.get_backend(group)) == "gloo":
                dist.monitored_barrier(group, timeout=_timeout_of(group), wait_all_ranks=True)
            else:
                dist.barrier(group)

    def sum(self, values: Tensor, where: str) -> Tensor:
        """The sum of a tensor over the ranks, the same bits on each of them."""
        if self.size == 1:
            return values
        total = values.to(self._device, copy=True)
        with explained(where):
            dist.all_reduce(total, group=self._group)
        return total.to(values.device)

    def common(self, values: Sequence[int], where: str) -> set[int]:
        """Those of some whole numbers that all ranks have named."""
        if self.size == 1:
            return set(values)
        # All must send equally many.
        counts = self._gathered([len(values)], where)
        longest = max(count for (count,) in counts)
        found = self._gathered([*values, *[0] * (longest - len(values))], where)
        return set.intersection(*(set(row[:count]) for row, (count,) in zip(found, counts, strict=True)))

    def _gathered(self, values: Sequence[int], where: str) -> list[list[int]]:
        own = torch.tensor(values, dtype=torch.int64, device=self._device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        if len(values):
            with explained(where):
                dist.all_gather(found, own, group=self._group)
        return [other.tolist() for other in found]

    def average_gradients(self, params: Sequence[Tensor]) -> None:
        """Average gradients over the ranks, as `DistributedDataParallel` would; in place.

        A parameter without a gradient on some ranks counts as 0 there.
        """
        where = "the averaging of gradients in the profile"
        used = torch.tensor([float(param.grad is not None) for param in params])
        used = self.sum(used, where).tolist()
        for param, count in zip(params, used, strict=True):
            if count == 0:
                continue
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            with explained(where):
                dist.all_reduce(param.grad, group=self._group)
            param.grad /= self.size

    def from_first(self, make: Callable[[], str], where: str) -> str:
        """The text that the first rank makes, broadcast as bytes; nobody else calls `make`.

        Raises:
            DistributedError: On the other ranks, if `make` raises on the first, which raises as it is.
        """
        if self.size == 1:
            return make()
        error, payload = None, b""
        if self.is_first:
            try:
                payload = make().encode()
            except Exception as raised:
                error, payload = raised, repr(raised).encode()
        payload, failed = self._broadcast(payload, error is not None, where)
        if error is not None:
            raise error
        if failed:
            raise DistributedError(f"the first rank failed at {where}: {payload.decode()}")
        return payload.decode()

    def _broadcast(self, payload: bytes, failed: bool, where: str) -> tuple[bytes, bool]:
        group, device = self._group, self._device
        head = torch.tensor([len(payload), int(failed)], dtype=torch.int64, device=device)
        with explained(where):
            dist.broadcast(head, group=group, group_src=0)
            length, flag = (int(value) for value in head)
            body = torch.zeros(length, dtype=torch.uint8, device=device)
            if self.is_first:
                body.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
            dist.broadcast(body, group=group, group_src=0)
        return body.cpu().numpy().tobytes(), bool(flag)

    def check_same(self, text: str, what: str, where: str) -> None:
        """Check by a hash that all ranks hold the same text.

        Args:
            text: What must be the same everywhere.
            what: What it is, for the error.
            where: What the ranks meet for, for the error.

        Raises:
            DistributedError: If one differs from the first rank's; raised on every rank alike.
        """
        if self.size == 1:
            return
        device = self._device
        digest = bytearray(hashlib.sha256(text.encode()).digest())
        own = torch.frombuffer(digest, dtype=torch.uint8).to(device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with explained(where):
            dist.all_gather(found, own, group=self._group)
        different = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if different:
            raise DistributedError(
                f"{what} of rank {', '.join(map(str, different))} is not that of rank 0: all ranks must build the "
                "same model and call select() with the same arguments; where ranks train different models, pass "
                "process_group= of those that share one, or None to decide alone"
            )


def _timeout_of(group: Any) -> timedelta | None:
    # torch's monitored barrier waits for half an hour, whatever the group was made with.
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)
    return getattr(options, "_timeout", None)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what a backend raises when a rank is missing into an error that says so."""
    try:
        yield
    except RuntimeError as error:  # torch's DistBackendError and DistNetworkError are RuntimeErrors
        raise DistributedError(
            f"the ranks could not agree at {where}: a rank has stopped, or takes another number of optimizer steps "
            f"than the others. See that rank's own log first. The backend said: {error}"
        ) from error
