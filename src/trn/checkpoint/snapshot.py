"""A copy of the whole state, taken between two steps into buffers that are allocated once and kept.

The copy is what blocks the loop, so it is nothing but memory copies: no hashing, no serialising, no fresh pages after
the first time. Tensors that share memory are copied once and share it in the copy too (tied weights stay tied).
"""

from __future__ import annotations

import mmap
from typing import Any

import torch

from trn.errors import TrainerError

__all__ = ["PAGE_BYTES", "Snapshots"]

PAGE_BYTES = 4096
"""What O_DIRECT asks addresses, lengths and offsets to be multiples of."""
_PAGES_FROM_BYTES = 1 << 20
"""From this size on a copy has pages of its own; below, it is gathered with others anyway."""

_PLAIN: tuple[type, ...] = (bool, int, float, str, bytes, type(None))
_Key = tuple[int, int, torch.dtype, torch.Size, tuple[int, ...], bool, bool]


def _plain(value: Any) -> Any:
    """The plain value of a subclass: str.__str__ since an enum's own gives its name."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) else float(value)


class Snapshots:
    """Takes copies; the value of one `take` is valid until the next."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, tree: Any) -> Any:
        """A copy of nested dicts, lists and tuples of tensors and plain values; tensors land in CPU memory.

        Raises TrainerError, naming the path, for anything that a checkpoint cannot hold.
        """
        used: set[str] = set()
        try:
            copy = self._copy(tree, "state", {}, used)
        except RecursionError:
            raise TrainerError("it is nested too deeply, or holds itself.", where="state") from None
        for path in set(self._buffers) - used:
            del self._buffers[path]
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
            torch.cuda.synchronize()  # copies from devices were queued without waiting
        return copy

    def size_bytes(self) -> int:
        """Bytes of a file with all copies, at most: each begins at a page, with a head before it."""
        return sum(buffer.nbytes + 2 * PAGE_BYTES for buffer in self._buffers.values())

    def at_pages(self) -> set[int]:
        """Addresses of the big copies that begin at a page: these can be written from where they lie."""
        addresses = (buffer.data_ptr() for buffer in self._buffers.values() if buffer.nbytes >= _PAGES_FROM_BYTES)
        return {address for address in addresses if address % PAGE_BYTES == 0}

    def _copy(self, value: Any, path: str, seen: dict[_Key, torch.Tensor], used: set[str]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), path, seen, used)
        if isinstance(value, int) and int(value).bit_length() > 63:
            raise TrainerError("a number of more than 64 bits.", where=path, hint="Keep it as text.")
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (int, float, str)):
            # a numpy float or an enum would be refused by the restricted loader: keep its plain value
            return _plain(value)
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, (str, int)):
                    raise TrainerError(
                        f"a key of type {type(key).__name__}; a checkpoint holds str and int.", where=path
                    )
            return {_plain(key): self._copy(item, f"{path}[{key!r}]", seen, used) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, f"{path}[{i}]", seen, used) for i, item in enumerate(value))
        raise TrainerError(
            f"a {type(value).__name__}; a checkpoint holds tensors, numbers, text, bytes, lists, tuples and dicts.",
            where=path,
            hint="Turn it into one of these in state_dict.",
        )

    def _tensor(self, tensor: torch.Tensor, path: str, seen: dict[_Key, torch.Tensor], used: set[str]) -> torch.Tensor:
        if tensor.layout is not torch.strided:
            raise TrainerError(f"a tensor of layout {tensor.layout}; a checkpoint holds strided ones.", where=path)
        if tensor.is_meta:
            raise TrainerError("a tensor on the device `meta`, which has no values to be kept.", where=path)
        # a conjugated or negated view shares the memory of what it is a view of, and not its values
        key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.dtype, tensor.shape,
               tensor.stride(), tensor.is_conj(), tensor.is_neg())  # fmt: skip
        if tensor.numel() and key in seen:
            return seen[key]
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = _room_for(tensor)
            self._buffers[path] = buffer
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        used.add(path)
        seen[key] = buffer
        return buffer


def _room_for(tensor: torch.Tensor) -> torch.Tensor:
    """Memory on the CPU, not touched yet, for a copy of `tensor`; a big one begins at a page."""
    if tensor.is_cuda or tensor.is_quantized or tensor.nbytes < _PAGES_FROM_BYTES:
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    plan = torch.empty_like(tensor, device="meta")  # dense, whatever `tensor` is
    # shared with forked children, of which none looks at it: open(2) forbids O_DIRECT from private memory during a fork
    pages = mmap.mmap(-1, plan.nbytes)
    return torch.frombuffer(pages, dtype=plan.dtype).as_strided(plan.shape, plan.stride())
