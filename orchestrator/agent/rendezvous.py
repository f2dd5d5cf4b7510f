"""Hosts the TCPStore through which the ranks of every attempt find each other.

A process of its own: the store needs torch and a thread, which neither the agent nor the zygote may have. It
outlives attempts; each attempt uses a prefix of its own.
"""

import contextlib

from torch import distributed as dist

from orchestrator.agent.channel import Channel


def run_store(channel: Channel) -> int:
    """Serve on a free port until the agent closes the channel."""
    host = channel.receive()["host"]
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    channel.send({"kind": "store", "host": host, "port": store.port})
    with contextlib.suppress(EOFError, OSError):
        while True:
            channel.receive()
    return 0
