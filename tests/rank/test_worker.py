"""What a rank makes of what its agent tells it first."""

from contextlib import closing

from orchestrator.agent.channel import Channel
from orchestrator.rank.worker import receive_spec


def test_an_earlier_attempts_transfer_may_end_before_a_rank_has_its_spec() -> None:
    agent, other_end = Channel.pair()
    with closing(agent), closing(Channel(other_end)) as rank:
        agent.send({"kind": "persisted", "slot": 0, "step": None, "is_disk": False})
        agent.send({"kind": "replicated", "slot": 1, "step": None})
        agent.send({"spec": {"rank": 1}, "is_standby": False})
        assert receive_spec(rank)["spec"] == {"rank": 1}
