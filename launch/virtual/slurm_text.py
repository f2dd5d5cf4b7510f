"""The files below /etc of a virtual cluster's nodes: slurm.conf and its kin, hosts, passwd. Plan half.

Time-outs are far below SLURM's defaults, so that a lost node is noticed in seconds and not in minutes; each such
line says the default.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from launch.virtual.spec import VirtualSpec

_SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={head}({head_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Default 120: how long a requeued job waits.
AuthInfo=cred_expire=5
MpiDefault=none
{tracking}
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation={folder}/{head}/state
SlurmctldLogFile={folder}/{head}/log/slurmctld.log
SlurmdLogFile={folder}/%n/log/slurmd.log
SlurmdSpoolDir={folder}/%n/spool
# Default 300: when a silent node is DOWN.
SlurmdTimeout=15
SlurmctldTimeout=10
TCPTimeout=2
MessageTimeout=5
BatchStartTimeout=10
# Default 30: from SIGTERM to SIGKILL at a time limit or scancel.
KillWait=5
UnkillableStepTimeout=20
# Jobs stay visible to scontrol for an hour after their end: there is no accounting.
MinJobAge=3600
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/{head}/jobcomp.txt
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
# The job's own --signal also announces a preemption.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
{gres}NodeName={nodes} CPUs={cpus} RealMemory={memory_mib}{node_gres} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_BY_CGROUPS = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/linux"
_BY_PROCESS_TREE = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux"
# Cores are not constrained: SLURM is told of more than the machine has.
_CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
"""


def etc_files(spec: VirtualSpec, folder: PurePosixPath, passwd: str) -> Mapping[str, str]:
    """Path below /etc -> content, the same on every node. `passwd` is the machine's /etc/passwd."""
    return {
        "hosts": hosts(spec),
        "passwd": passwd_with_home(passwd, folder / "shared/home"),
        "resolv.conf": "# No name server: all that can be reached is in /etc/hosts.\n",
        "slurm/slurm.conf": slurm_conf(spec, folder),
        "slurm/plugstack.conf": "",
        "slurm/cgroup.conf": _CGROUP_CONF if spec.has_cgroups else "",
        "slurm/gres.conf": gres_conf(spec),
    }


def slurm_conf(spec: VirtualSpec, folder: PurePosixPath) -> str:
    """slurm.conf with two partitions: `main`, and `high`, whose jobs preempt those of `main` by requeueing them."""
    text = _SLURM_CONF.format(
        name=spec.name,
        head=spec.head,
        head_address=spec.address(spec.head),
        folder=folder,
        tracking=_BY_CGROUPS if spec.has_cgroups else _BY_PROCESS_TREE,
        gres="GresTypes=gpu\n" if spec.gpus else "",
        nodes=_hostlist(spec),
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        node_gres=f" Gres=gpu:{spec.gpu_type}:{spec.gpus}" if spec.gpus else "",
    )
    return text + "".join(f"{line}\n" for line in spec.slurm_lines)


def gres_conf(spec: VirtualSpec) -> str:
    """A device file for each GPU: SLURM believes no count without files."""
    if not spec.gpus:
        return ""
    files = f"/dev/nvidia[0-{spec.gpus - 1}]" if spec.gpus > 1 else "/dev/nvidia0"
    return f"NodeName={_hostlist(spec)} Name=gpu Type={spec.gpu_type} File={files}\n"


def hosts(spec: VirtualSpec) -> str:
    lines = ["127.0.0.1 localhost", *(f"{spec.address(node)} {node}" for node in spec.all_nodes)]
    return "".join(f"{line}\n" for line in lines)


def passwd_with_home(passwd: str, home: PurePosixPath) -> str:
    """The machine's users, but root lives on the shared folder: nothing of the real home gets into a trial."""
    lines = []
    for line in passwd.splitlines():
        fields = line.split(":")
        if fields[0] == "root" and len(fields) == 7:
            fields[5] = str(home)
        lines.append(":".join(fields))
    return "".join(f"{line}\n" for line in lines)


def _hostlist(spec: VirtualSpec) -> str:
    return f"{spec.name}[1-{spec.nodes}]"
