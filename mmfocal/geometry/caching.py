"""Tables that are kept: bounded by their bytes, whole on every stream, and safe in CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import RLock
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .focal import FocalKeys

Made = TypeVar('Made')


class TableCache(Generic[Made]):
    """What was made of keys on a device, the latest used last, up to a number of bytes.

    Tables are complete before they are returned, so that streams need not wait for each other. On
    a GPU they are made on a stream of their own: only that is waited for, not the work that the
    host is ahead of. A CUDA graph reads tables where they were when it was captured, so those that
    one has used are never freed. Before any is let go the GPU finishes its work; whoever still
    holds it, such as a backward pass, has it until its stream is done.

    Args:
        make: from keys and a device to what is kept. Gradients and inference mode are off.
        bytes_of: memory that it takes.
        limit: bytes that are kept, over all devices, besides what graphs use. The latest is kept
            whatever it takes.
    """

    # The backward passes of several GPUs run in threads. Tables are made from those of other
    # caches, in either order, so that locks of their own would wait for each other.
    _lock: ClassVar[RLock] = RLock()

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

    def __iter__(self) -> Iterator[Made]:
        return iter((*self._captured.values(), *self._made.values()))

    def get(self, keys: FocalKeys, device: torch.device | str) -> Made:
        """What is made of ``keys`` on ``device``, once.

        Raises:
            RuntimeError: a CUDA graph is captured, and there is none yet.
        """
        device = torch.device(device)
        if device.type == 'cuda' and device.index is None:
            device = torch.device('cuda', torch.cuda.current_device())
        with self._lock:
            return self._get(keys.with_plain_sizes(), device)

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
        made = self._whole(keys, device)
        if any(type(each) is not Tensor for each in tensors_in(made)):
            return made  # fake tensors are of the mode that is on
        self._made[wanted] = made
        self._bytes += self._bytes_of(made)
        while self._bytes > self.limit and len(self._made) > 1:
            (_, its_device), oldest = self._made.popitem(last=False)
            self._bytes -= self._bytes_of(oldest)
            if its_device.type == 'cuda':
                torch.cuda.synchronize(its_device)
                # Memory goes back to the stream that made it, which waits for no other by itself.
                for each in tensors_in(oldest):
                    each.record_stream(torch.cuda.current_stream(its_device))
        return made

    def _whole(self, keys: FocalKeys, device: torch.device) -> Made:
        # A table made under inference_mode could never be saved for a later backward pass. Numbers
        # that tables are made from are on the CPU, also where others are elsewhere by default.
        with torch.inference_mode(False), torch.no_grad(), torch.device('cpu'):
            if device.type != 'cuda':
                return self._make(keys, device)
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            with torch.cuda.stream(self._streams[device]):
                made = self._make(keys, device)
            self._streams[device].synchronize()
            return made


def tensors_in(made: object) -> Iterator[Tensor]:
    """The tensors of tuples in each other and of attributes; some of them maybe several times."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, tuple | list):
        for each in made:
            yield from tensors_in(each)
    elif hasattr(made, '__dict__'):
        yield from tensors_in(list(vars(made).values()))


def bytes_of(made: object) -> int:
    """Memory of all different tensors in it."""
    different = {id(each): each for each in tensors_in(made)}
    return sum(each.nbytes for each in different.values())
