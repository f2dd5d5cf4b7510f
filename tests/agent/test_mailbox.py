"""An agent's mailbox: one listener at a time, and a second telling for the next one."""

import threading

import pytest

from orchestrator.agent.mailbox import KEPT_EVENTS, Event, Mailbox


def step(number: int) -> Event:
    return {"kind": "step", "step": number}


def test_everything_comes_once_and_in_order() -> None:
    mailbox = Mailbox()
    for number in range(3):
        mailbox.put(step(number))
    assert mailbox.take(60.0) == [step(0), step(1), step(2)]
    assert mailbox.take(0.0) == []


@pytest.mark.parametrize("urgent", [{"kind": "exited"}, {"kind": "step", "step": 1, "phases_s": {}}])
def test_an_urgent_event_wakes_the_listener(urgent: Event) -> None:
    mailbox, heard = Mailbox(batch_s=600.0), []
    listener = threading.Thread(target=lambda: heard.extend(mailbox.take(600.0)))
    listener.start()
    mailbox.put(step(0))
    mailbox.put(urgent)
    listener.join()
    assert heard == [step(0), urgent]


def test_a_new_listener_sends_the_old_one_away_with_nothing() -> None:
    mailbox, first = Mailbox(), [step(9)]
    is_listening = threading.Event()

    def listen() -> None:
        is_listening.set()
        first[:] = mailbox.take(600.0)

    old = threading.Thread(target=listen)
    old.start()
    is_listening.wait()
    while old.is_alive():  # the old one may not have begun to wait yet
        assert mailbox.take(0.0) == []
    assert first == []
    mailbox.put(step(1))
    assert mailbox.take(60.0) == [step(1)]


def test_what_a_driver_may_not_have_written_down_is_told_again_before_what_is_new() -> None:
    mailbox = Mailbox()
    told = [step(1), {"kind": "output", "text": "x"}, {"kind": "evaluated", "step": 1}]
    for event in told:
        mailbox.put(event)
    assert mailbox.take(60.0) == told
    mailbox.put(step(2))
    mailbox.tell_again()
    assert mailbox.take(60.0) == [step(1), {"kind": "evaluated", "step": 1}, step(2)]
    mailbox.tell_again()  # and to the driver after that one
    assert mailbox.take(60.0) == [step(1), {"kind": "evaluated", "step": 1}, step(2)]


def test_only_the_newest_are_kept() -> None:
    mailbox = Mailbox()
    for number in range(KEPT_EVENTS + 5):
        mailbox.put(step(number))
    mailbox.take(60.0)
    mailbox.tell_again()
    assert [event["step"] for event in mailbox.take(60.0)] == list(range(5, KEPT_EVENTS + 5))
