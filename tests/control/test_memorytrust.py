"""When the agents' memory is believed, and when storage is asked instead."""

from orchestrator.control.memorytrust import MemoryTrust


def test_one_attempt_may_find_damage_on_several_ranks() -> None:
    memory = MemoryTrust()
    memory.rejected(3, is_emptied=True)
    memory.rejected(3, is_emptied=True)
    assert memory.is_given


def test_two_attempts_in_a_row_may_not() -> None:
    memory = MemoryTrust()
    memory.rejected(3, is_emptied=True)
    memory.rejected(4, is_emptied=True)
    assert not memory.is_given


def test_what_would_be_given_again_is_not_asked_for_again() -> None:
    memory = MemoryTrust()
    memory.rejected(3, is_emptied=False)
    memory.rejected(3, is_emptied=True)
    assert not memory.is_given


def test_a_step_makes_it_good_again() -> None:
    memory = MemoryTrust()
    memory.rejected(3, is_emptied=True)
    memory.stepped()
    memory.rejected(4, is_emptied=True)
    assert memory.is_given
    memory.rejected(5, is_emptied=True)
    memory.stepped()
    assert memory.is_given
