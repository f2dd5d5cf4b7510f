"""Failure domains: nodes that may be lost together (a rack, a switch, a power feed), and who holds whose copies. Plan
half."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from orchestrator.config import ClusterConfig

SLURM_ADDRESS = "SLURM_TOPOLOGY_ADDR"
"""`s0.s4.node7`, where SLURM knows its switches (topology/tree): those above the node, and the node."""
SLURM_PATTERN = "SLURM_TOPOLOGY_ADDR_PATTERN"
"""`switch.switch.node`"""


def domain_of(
    host: str, labels: Mapping[str, str], environment: Mapping[str, str], config: ClusterConfig
) -> str | None:
    """A node's failure domain, None where nothing is known of it.

    `cluster.failure_domains` by host name, else the Ray node label `cluster.failure_domain_label`, else the switches
    that SLURM names in the node's environment.
    """
    for domain, patterns in config.failure_domains.items():
        if any(fnmatchcase(host, pattern) for pattern in patterns):
            return domain
    if config.failure_domain_label is not None:
        return labels.get(config.failure_domain_label)
    num_switches = environment.get(SLURM_PATTERN, "").split(".").count("switch")
    switches = environment.get(SLURM_ADDRESS, "").split(".")[:num_switches]
    return ".".join(switches) or None


def copy_holders(domains: Sequence[str | None]) -> list[int]:
    """node -> the node that holds copies of its snapshots; each node holds those of one other.

    In another domain wherever that can be: for all nodes as long as no domain has more than half of them, else for
    as many as possible. Nodes of which no domain is known count as one domain, so without domains it is a ring. One
    node alone holds its own.
    """
    num_nodes = len(domains)
    if num_nodes == 0:
        return []
    sizes = Counter(domains)
    first_of = {domain: node for node, domain in reversed(list(enumerate(domains)))}
    largest = max(sizes.values())
    # Domains side by side, the largest first: going on by its size always leaves a domain, where that can be.
    order = sorted(range(num_nodes), key=lambda node: (-sizes[domains[node]], first_of[domains[node]], node))
    shift = largest if largest < num_nodes else 1
    holders = [0] * num_nodes
    for place, node in enumerate(order):
        holders[node] = order[(place + shift) % num_nodes]
    return holders


def domain_problems(hosts: Sequence[str], domains: Sequence[str | None], config: ClusterConfig) -> list[str]:
    """What people should know about the domains that they named, one sentence each."""
    problems = []
    is_named = bool(config.failure_domains) or config.failure_domain_label is not None
    unknown = sorted({host for host, domain in zip(hosts, domains, strict=True) if domain is None})
    if is_named and unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        problems.append(
            f"{', '.join(unknown[:3])}{more}: no failure domain is known; see cluster.failure_domains and "
            "cluster.failure_domain_label"
        )
    inside = sum(domains[node] == domains[holder] for node, holder in enumerate(copy_holders(domains)))
    if inside and len(hosts) > 1 and any(domain is not None for domain in domains):
        problems.append(
            f"the copies of {inside} of {len(hosts)} nodes are in their own failure domain, because it has more than "
            "half of the nodes: losing it costs the steps since the last checkpoint"
        )
    return problems
