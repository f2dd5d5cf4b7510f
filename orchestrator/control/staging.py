"""Device to host through a small ring of pinned memory, on a stream of its own, so that training's streams go on."""

import torch

RING_BYTES = 64 * 2**20
RING_BUFFERS = 2


def copy_to_host(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy float32 `source` [count] into host memory `target` [count]; returns when it is there."""
    if source.is_cuda:
        _ring(source.device).copy(target, source)
    else:
        target.copy_(source)


class PinnedRing:
    """Whole slots are never pinned: page-locking gigabytes is slow and starves the host. Used by one thread."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        count = RING_BYTES // RING_BUFFERS // 4
        self._buffers = [torch.empty(count, dtype=torch.float32, pin_memory=True) for _ in range(RING_BUFFERS)]
        self._events = [torch.cuda.Event() for _ in range(RING_BUFFERS)]

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Chunk k crosses the bus while chunk k - 1 is copied from its pinned buffer into the target."""
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        chunk = self._buffers[0].numel()
        pending: list[tuple[int, int, int]] = []
        for number, first in enumerate(range(0, source.numel(), chunk)):
            buffer = number % RING_BUFFERS
            if len(pending) == RING_BUFFERS:
                self._land(target, *pending.pop(0))
            count = min(chunk, source.numel() - first)
            with torch.cuda.stream(self._stream):
                self._buffers[buffer][:count].copy_(source[first : first + count], non_blocking=True)
                self._events[buffer].record(self._stream)
            pending.append((buffer, first, count))
        for landing in pending:
            self._land(target, *landing)

    def _land(self, target: torch.Tensor, buffer: int, first: int, count: int) -> None:
        self._events[buffer].synchronize()
        target[first : first + count].copy_(self._buffers[buffer][:count])


_rings: dict[torch.device, PinnedRing] = {}


def _ring(device: torch.device) -> PinnedRing:
    if device not in _rings:
        _rings[device] = PinnedRing(device)
    return _rings[device]
