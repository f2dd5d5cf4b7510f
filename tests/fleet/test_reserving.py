"""Which of Ray's nodes a run asks for."""

from orchestrator.fleet.reserving import rooms_for
from orchestrator.spec import Bundle

SMALL, LARGE = Bundle(workers=1, cpus=2, gpus=0), Bundle(workers=4, cpus=8, gpus=4)
FREE = {"a": {"CPU": 2.0}, "b": {"CPU": 16.0, "GPU": 4.0}, "c": {"CPU": 4.0, "GPU": 0.0}}


def test_each_bundle_gets_the_first_node_with_room_and_none_gets_two() -> None:
    assert rooms_for([SMALL, SMALL], FREE) == ["a", "b"]
    assert rooms_for([LARGE, SMALL, SMALL], FREE) == ["b", "a", "c"]


def test_nodes_that_are_excluded_are_not_asked_for() -> None:
    assert rooms_for([SMALL], FREE, {"a"}) == ["b"]
    assert rooms_for([LARGE], FREE, {"b"}) is None


def test_where_it_does_not_work_out_ray_is_asked() -> None:
    assert rooms_for([SMALL, SMALL, LARGE], FREE) is None
    assert rooms_for([SMALL] * 4, FREE) is None
    assert rooms_for([SMALL], {}) is None
