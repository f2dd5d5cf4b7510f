"""python relay.py PORT TAP DELAY_MS LOSS: a slow, lossy cable between a node's port and the switch.

A process in the switch's namespace moves every frame between the port and a tap device of its own, each way after
`DELAY_MS` and dropping a share `LOSS`: many kernels are built without netem. The command returns when the tap is
there and leaves that process; the tap ends with it. Standard library only: it runs on its own.
"""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 1, 15, 23
PACKET_MR_PROMISC = 1
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
BUFFER_BYTES = 8 << 20
FRAME_BYTES = 1 << 17
"""More than the largest frame that the kernel joins from several, with its header."""
FRAMES_AT_ONCE = 64
MAX_WAITING = 20_000
"""Frames on their way; more are dropped, as a router's full queue drops them."""


def main(port: str, tap: str, delay_ms: float, loss: float) -> None:
    with _open_port(port) as cable:
        device = _open_tap(tap)
        if os.fork():
            return
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        relay(cable.fileno(), device, delay_ms / 1000, loss, random.Random(0))


def _open_port(name: str) -> socket.socket:
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # With the kernel's own header, frames keep checksums and sizes that only the last device fills in.
    for option in (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING):
        cable.setsockopt(SOL_PACKET, option, 1)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        cable.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    cable.bind((name, 0))
    member = struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
    cable.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
    cable.setblocking(False)
    return cable


def _open_tap(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return device


def relay(one: int, other: int, delay_s: float, loss: float, dice: random.Random) -> None:
    """Until the process is killed. Frames keep their order, as on a cable."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    poll = select.poll()
    for end in (one, other):
        poll.register(end, select.POLLIN)
    while True:
        left_ms = (waiting[0][0] - time.monotonic()) * 1000 if waiting else None
        for end, _ in poll.poll(None if left_ms is None else max(0.0, left_ms)):
            arrived_s, target = time.monotonic(), other if end == one else one
            for frame in _frames(end):
                if dice.random() >= loss and len(waiting) < MAX_WAITING:
                    waiting.append((arrived_s + delay_s, target, frame))
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, target, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # a full queue, or a device that is down: the frame is lost
                os.write(target, frame)


def _frames(end: int) -> list[bytes]:
    frames: list[bytes] = []
    with contextlib.suppress(OSError):  # no more of them
        while len(frames) < FRAMES_AT_ONCE:
            frames.append(os.read(end, FRAME_BYTES))
    return frames


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
