"""What the nodes of a virtual cluster read, against reviewed text; what can't be is refused with all its problems."""

from pathlib import PurePosixPath

import pytest
from golden_texts import check_golden

from launch.virtual.slurm_text import etc_files, gres_conf
from launch.virtual.spec import VirtualSpec, spec_problems

PASSWD = "root:x:0:0:root:/root:/bin/bash\nmunge:x:102:105::/nonexistent:/usr/sbin/nologin\n"
FOLDER = PurePosixPath("/var/tmp/phalanx-virtual/v")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("virtual_gpus", VirtualSpec(nodes=12, gpus=2, slurm_lines=("OverTimeLimit=1",))),
        ("virtual_without_cgroups", VirtualSpec(nodes=1, has_cgroups=False)),
    ],
)
def test_files_below_etc(name: str, spec: VirtualSpec) -> None:
    files = etc_files(spec, FOLDER, PASSWD)
    check_golden(f"{name}.txt", "".join(f"== {path}\n{text}" for path, text in files.items()))


def test_one_gpu_is_one_file() -> None:
    assert gres_conf(VirtualSpec(nodes=2, gpus=1)) == "NodeName=v[1-2] Name=gpu Type=h100 File=/dev/nvidia0\n"


def test_names_and_addresses() -> None:
    spec = VirtualSpec(name="ab", nodes=2)
    assert [(node, spec.address(node)) for node in spec.all_nodes] == [
        ("ab0", "10.77.0.10"),
        ("ab1", "10.77.0.11"),
        ("ab2", "10.77.0.12"),
    ]


def test_every_problem_is_named_at_once() -> None:
    spec = VirtualSpec(name="a-1", nodes=0, cpus=0, gpus=-1, keep=("/home",))
    problems = "\n".join(spec_problems(spec))
    for words in ("--name a-1 must be", "0 nodes", "--cpus 0", "--gpus -1", "--keep /home"):
        assert words in problems
    assert spec_problems(VirtualSpec(nodes=100, keep=("/tmp/mine",))) == ()
