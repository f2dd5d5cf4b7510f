"""When a run that goes on without lost nodes looks for others."""

from dataclasses import dataclass

from orchestrator.control.growth import LOOK_S, Growth


@dataclass
class Watch:
    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@dataclass
class ShortFleet:
    """Counts how often it is asked."""

    is_short: bool = True
    has_room: bool = False
    looks: int = 0

    def has_replacements(self) -> bool:
        self.looks += 1
        return self.has_room


@dataclass
class NobodySlow:
    def is_time_to_leave(self, attempt: None) -> bool:
        return False


def test_it_trains_for_a_while_before_it_looks_and_looks_now_and_then():
    fleet, clock = ShortFleet(), Watch()
    growth = Growth(fleet, NobodySlow(), clock, interval_s=60.0)
    growth.on_first_step()
    clock.now_s += 59.9
    assert not growth.is_possible(None)
    assert fleet.looks == 0
    clock.now_s += 0.1
    for _ in range(10):
        assert not growth.is_possible(None)
    assert fleet.looks == 1
    clock.now_s += LOOK_S
    fleet.has_room = True
    assert growth.is_possible(None)
    assert fleet.looks == 2
    growth.on_first_step()  # of the larger world: from here on it trains for a while again
    clock.now_s += LOOK_S
    assert not growth.is_possible(None)


def test_a_whole_fleet_is_never_asked():
    fleet, clock = ShortFleet(is_short=False, has_room=True), Watch()
    growth = Growth(fleet, NobodySlow(), clock, interval_s=0.0)
    for _ in range(5):
        clock.now_s += 100.0
        assert not growth.is_possible(None)
    assert fleet.looks == 0
