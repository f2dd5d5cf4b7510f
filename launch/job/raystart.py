"""`ray start` on one node of an allocation: its words, its environment, its ports. Plan half."""

from collections.abc import Iterator, Mapping

FIRST_PORT, LAST_PORT = 20_000, 31_999
"""Below what Linux gives to outgoing connections."""
PORTS_PER_BLOCK = 3
"""GCS, Ray client server, dashboard agent: the ports that Ray would fix; it chooses the others freely by itself."""
OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest: nothing of ours goes through it."""


def port_blocks(job_id: int) -> Iterator[int]:
    """First ports of every block, from the one that the job's id points at: neighbouring jobs begin apart."""
    count = (LAST_PORT + 1 - FIRST_PORT) // PORTS_PER_BLOCK
    for place in range(count):
        yield FIRST_PORT + (job_id * 7 + place) % count * PORTS_PER_BLOCK


def ray_words(
    *,
    python: str,
    temp_dir: str,
    node_ip: str,
    block: int,
    cpus: int,
    gpus: int,
    memory_bytes: int | None,
    join: str | None,
) -> list[str]:
    """`ray start` for the head (`join` None) or for a node that joins the head at HOST:PORT.

    `cpus`, `gpus` and `memory_bytes` are the allocation's share of this node: Ray would count the whole machine.
    """
    gcs, client, agent = range(block, block + PORTS_PER_BLOCK)
    role = (
        [f"--address={join}"]
        if join
        else ["--head", f"--port={gcs}", f"--ray-client-server-port={client}", "--include-dashboard=false"]
    )
    return [
        *(python, "-m", "ray.scripts.scripts", "start"),
        *role,
        f"--node-ip-address={node_ip}",
        f"--temp-dir={temp_dir}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        *([f"--memory={memory_bytes}"] if memory_bytes else []),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]


def allocated(environment: Mapping[str, str]) -> tuple[int, int, int | None]:
    """(CPUs, GPUs, bytes of memory or None) that SLURM gave this step on this node."""
    cpus = int(environment["SLURM_CPUS_ON_NODE"])
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or len([word for word in visible.split(",") if word]))
    per_node, per_cpu = environment.get("SLURM_MEM_PER_NODE"), environment.get("SLURM_MEM_PER_CPU")
    mib = int(per_node) if per_node else int(per_cpu) * cpus if per_cpu else 0
    return cpus, gpus, mib * 2**20 or None
