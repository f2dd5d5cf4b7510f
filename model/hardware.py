"""Accelerators by name: memory, peak rate and bandwidth, for `phalanx plan` and MFU. Plan half."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One device as its vendor sells it."""

    memory_bytes: int
    """Decimal gigabytes of the data sheet. The little more that the driver reports is the CUDA context's."""
    peak_flops: float
    """Dense bf16 FLOP/s with fp32 accumulation, no structured sparsity."""
    bandwidth_bytes_per_s: float
    """Of the device's own memory."""
    node_link_bytes_per_s: float
    """From one device to the others of its node, one direction."""
    network_bytes_per_s: float
    """One device's share of its node's network, one direction, in the vendor's reference system."""


# Links: NVLink 3, 4 and 5 are 600, 900 and 1,800 GB/s in both directions together, Infinity Fabric 896; DGX A100 has
# a 200 Gbit/s adapter for each GPU, DGX H100, H200 and B200 and the MI300X platforms 400 Gbit/s.
# Vendors' data sheets. NVIDIA prints tensor rates with sparsity for Hopper and Blackwell: halved here.
ACCELERATORS: dict[str, Accelerator] = {
    # "NVIDIA A100 Tensor Core GPU", SXM: 312 TFLOP/s dense, 40 GB HBM2 at 1,555 GB/s,
    # 80 GB HBM2e at 2,039 GB/s.
    "a100_40g": Accelerator(
        memory_bytes=40 * 10**9,
        peak_flops=312e12,
        bandwidth_bytes_per_s=1.555e12,
        node_link_bytes_per_s=300e9,
        network_bytes_per_s=25e9,
    ),
    "a100": Accelerator(
        memory_bytes=80 * 10**9,
        peak_flops=312e12,
        bandwidth_bytes_per_s=2.039e12,
        node_link_bytes_per_s=300e9,
        network_bytes_per_s=25e9,
    ),
    # "NVIDIA H100 Tensor Core GPU", SXM: 1,979 TFLOP/s with sparsity, 80 GB HBM3 at 3.35 TB/s.
    "h100": Accelerator(
        memory_bytes=80 * 10**9,
        peak_flops=989.5e12,
        bandwidth_bytes_per_s=3.35e12,
        node_link_bytes_per_s=450e9,
        network_bytes_per_s=50e9,
    ),
    # "NVIDIA H200 Tensor Core GPU", SXM: 1,979 TFLOP/s with sparsity, 141 GB HBM3e at 4.8 TB/s.
    "h200": Accelerator(
        memory_bytes=141 * 10**9,
        peak_flops=989.5e12,
        bandwidth_bytes_per_s=4.8e12,
        node_link_bytes_per_s=450e9,
        network_bytes_per_s=50e9,
    ),
    # "NVIDIA DGX B200", an eighth of it: 36 PFLOP/s with sparsity, 1,440 GB HBM3e at 64 TB/s.
    "b200": Accelerator(
        memory_bytes=180 * 10**9,
        peak_flops=2.25e15,
        bandwidth_bytes_per_s=8e12,
        node_link_bytes_per_s=900e9,
        network_bytes_per_s=50e9,
    ),
    # "AMD Instinct MI300X Accelerator": 1,307.4 TFLOP/s dense, 192 GB HBM3 at 5.3 TB/s.
    "mi300x": Accelerator(
        memory_bytes=192 * 10**9,
        peak_flops=1307.4e12,
        bandwidth_bytes_per_s=5.3e12,
        node_link_bytes_per_s=448e9,
        network_bytes_per_s=50e9,
    ),
}


def hardware_problem(name: str) -> str | None:
    """The sentence for a name that the table does not have; None where it does."""
    if name in ACCELERATORS:
        return None
    near = difflib.get_close_matches(name.lower(), ACCELERATORS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = ", ".join(ACCELERATORS)
    return (
        f"cluster.hardware={name} is not known; {hint}known: {known}; "
        "or leave it null and set cluster.memory_bytes_per_worker"
    )
