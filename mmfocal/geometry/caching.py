"""Tables that are kept: bounded by their bytes, whole on every stream, and safe in CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from threading import RLock
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from .focal import FocalKeys

Made = TypeVar('Made')


class TableCache(Generic[Made]):
    """What was made of keys on a device, the latest used last, up to a number of bytes.

    Tables are complete before they are returned, so that streams need not wait for each other. On
    a GPU they are made on a stream of their own: only that is waited for, not the work that the
    host is ahead of. A CUDA graph reads tables where they were when it was captured, so those that
    one has used are never freed; and the GPU has finished its work before any is freed.

    Args:
        make: from keys and a device to what is kept. Gradients and inference mode are off.
        bytes_of: memory that it takes.
        limit: bytes that are kept, over all devices, besides what graphs use. The latest is kept
            whatever it takes.
    """

    def __init__(
        self,
        make: Callable[[FocalKeys, torch.device], Made],
        bytes_of: Callable[[Made], int],
        limit: int,
    ) -> None:
        self._make, self._bytes_of, self.limit = make, bytes_of, limit
        self._made: OrderedDict[tuple[FocalKeys, torch.device], Made] = OrderedDict()
        self._captured: dict[tuple[FocalKeys, torch.device], Made] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._bytes = 0
        # The backward passes of several GPUs run in threads; tables are made from tables.
        self._lock = RLock()

    def __iter__(self) -> Iterator[Made]:
        return iter((*self._captured.values(), *self._made.values()))

    def get(self, keys: FocalKeys, device: torch.device | str) -> Made:
        """What is made of ``keys`` on ``device``, once.

        Raises:
            RuntimeError: a CUDA graph is captured, and there is none yet.
        """
        with self._lock:
            return self._get(keys.with_plain_sizes(), torch.device(device))

    def _get(self, keys: FocalKeys, device: torch.device) -> Made:
        wanted = (keys, device)
        capturing = device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
        if wanted in self._captured:
            return self._captured[wanted]
        if wanted in self._made:
            self._made.move_to_end(wanted)
            made = self._made[wanted]
            if capturing:
                self._captured[wanted] = self._made.pop(wanted)
                self._bytes -= self._bytes_of(made)
            return made
        if capturing:
            raise RuntimeError(
                f'a CUDA graph is being captured, and focal attention has no tables yet for maps '
                f'of {keys.map_size} tokens; run the model once for images of this size before'
            )
        made = self._made[wanted] = self._whole(keys, device)
        self._bytes += self._bytes_of(made)
        while self._bytes > self.limit and len(self._made) > 1:
            (_, its_device), oldest = self._made.popitem(last=False)
            self._bytes -= self._bytes_of(oldest)
            if its_device.type == 'cuda':
                torch.cuda.synchronize(its_device)
        return made

    def _whole(self, keys: FocalKeys, device: torch.device) -> Made:
        # A table made under inference_mode could never be saved for a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            if device.type != 'cuda':
                return self._make(keys, device)
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            with torch.cuda.stream(self._streams[device]):
                made = self._make(keys, device)
            self._streams[device].synchronize()
            return made


def bytes_of(tensors: Iterable[object]) -> int:
    """Memory of all different tensors among some objects."""
    different = {id(each): each for each in tensors if isinstance(each, torch.Tensor)}
    return sum(each.nbytes for each in different.values())
