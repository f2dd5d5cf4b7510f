from orchestrator.control.storehealth import REPEAT_S, Say, StoreHealth


def test_an_outage_is_said_once_and_then_at_a_sensible_rate():
    health = StoreHealth()
    assert health.failed("full", 0.0) is Say.alert
    said = [health.failed("full", now) for now in range(1, 3601)]
    assert said.count(Say.line) == 3600 // REPEAT_S
    assert said.count(Say.alert) == 0


def test_each_cause_is_said_and_causes_that_alternate_are_not_said_again():
    health = StoreHealth()
    said = [health.failed(fault, now) for now, fault in enumerate(["busy", "denied", "busy", None, "denied", None])]
    assert said == [Say.alert, Say.line, Say.nothing, Say.line, Say.nothing, Say.nothing]


def test_the_end_of_an_outage_is_known_once_and_the_next_one_is_new():
    health = StoreHealth()
    assert health.worked(5.0) is None
    health.failed("full", 10.0)
    health.failed("full", 20.0)
    assert health.worked(40.0) == 30.0
    assert health.worked(50.0) is None
    assert health.failed("full", 60.0) is Say.alert


def test_it_is_failing_from_the_first_failure_to_the_next_commit():
    health = StoreHealth()
    assert not health.is_failing
    health.failed("full", 0.0)
    assert health.is_failing
    health.worked(1.0)
    assert not health.is_failing
