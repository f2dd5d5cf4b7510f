"""Messages between processes: whole, in order, and with descriptors."""

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.agent.channel import Channel, receive_with_descriptors, send_with_descriptors

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.text(), PLAIN, max_size=3), max_size=5))
def test_messages_arrive_as_sent_and_in_order(messages):
    here, descriptor = Channel.pair()
    there = Channel(descriptor)
    for message in messages:
        here.send(message)
    assert [there.receive() for _ in messages] == messages
    assert not there.ready()
    here.close()
    there.close()


def test_both_ends_speak_and_a_closed_one_is_noticed():
    here, descriptor = Channel.pair()
    there = Channel(descriptor)
    there.send({"kind": "last"})
    there.close()
    assert here.ready()
    assert here.receive() == {"kind": "last"}
    with pytest.raises(EOFError):
        here.receive()
    with pytest.raises(OSError):
        here.send({"kind": "nobody hears"})
    here.close()
    here.close()


def test_descriptors_travel_with_a_message():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    readable, writable = os.pipe()
    send_with_descriptors(here, {"op": "fork"}, [writable])
    os.close(writable)
    message, (received,) = receive_with_descriptors(there)
    os.write(received, b"through the copy")
    os.close(received)
    assert message == {"op": "fork"}
    assert os.read(readable, 100) == b"through the copy"
    assert os.read(readable, 100) == b""
    os.close(readable)
    here.close()
    with pytest.raises(EOFError):
        receive_with_descriptors(there)
    there.close()
