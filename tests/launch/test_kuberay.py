"""The RayJob against reviewed text and against the fields that KubeRay's reference names; what can't be in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from golden_texts import check_golden
from jsonschema import Draft202012Validator

from launch.compose import compose
from launch.kuberay.request import num_bytes
from launch.kuberay.submitting import manifest_text, pod_words
from launch.submit import wanted_device
from orchestrator.errors import ConfigError

IMAGE = "cluster.kuberay.image=registry.example/phalanx:1"
PLACES = ["run.id=first", "run.root=/shared/runs", "data.path=/shared/data"]
TWO_BY_EIGHT = ["cluster=kuberay_h100x8", "experiment=gpt_1_3b_h100x8", "cluster.num_workers=16", IMAGE, *PLACES]
SMALL = [
    "cluster=kuberay",
    "model=tiny",
    "cluster.device=cpu",
    "cluster.num_workers=4",
    "cluster.workers_per_node=2",
    "train.global_batch_size=16",
    IMAGE,
    *PLACES,
    "cluster.kuberay.claims={shared:/shared,scratch.big:/scratch}",
]
EVERYTHING = [
    *SMALL,
    "checkpoint.url=/scratch/checkpoints",
    "tracking.wandb.notes=it's $HOME; rm -rf /",
    "cluster.kuberay.namespace=training",
    "cluster.kuberay.spare_nodes=1",
    "cluster.kuberay.memory_per_node=12Gi",
    "cluster.kuberay.environment={DEBUG:true,TEXT:'$(id) `id`',NUMBER:3}",
    "cluster.kuberay.secrets={WANDB_API_KEY:wandb/key,PHALANX_CHECKPOINT_KEY:keys/checkpoint.key}",
    "cluster.kuberay.image_pull_secrets=[registry]",
    "cluster.kuberay.service_account=trainer",
    "cluster.kuberay.tolerations={dedicated:training,spot:null}",
    "cluster.kuberay.labels.queue=training",
    "cluster.kuberay.node_selector={disk:nvme}",
    "cluster.kuberay.backoff_limit=10",
    "cluster.kuberay.termination_grace_s=120",
]


def text_of(words: list[str]) -> str:
    composed = compose(words)
    return manifest_text(composed.config, composed.overrides, wanted_device(composed.config))


@pytest.mark.parametrize(("name", "words"), [("h100x8", TWO_BY_EIGHT), ("small", SMALL), ("everything", EVERYTHING)])
def test_manifests(name: str, words: list[str]) -> None:
    check_golden(f"kuberay_{name}.yaml", text_of(words))


def fields(*required: str, **properties: object) -> dict[str, object]:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# The fields that we write, with their types and what must be there, as the references of KubeRay (ray.io/v1) and of
# Kubernetes (core/v1) have them. A field that neither has would be refused by `kubectl create`.
TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
SECRET = fields("secretKeyRef", secretKeyRef=fields("name", "key", name=TEXT, key=TEXT))
VARIABLE = {
    "oneOf": [
        fields("name", "value", name=TEXT, value=TEXT),
        fields("name", "valueFrom", name=TEXT, valueFrom=SECRET),
    ]
}
VOLUME = {
    "oneOf": [
        fields("name", "emptyDir", name=TEXT, emptyDir=fields(medium={"enum": ["", "Memory"]}, sizeLimit=TEXT)),
        fields("name", "persistentVolumeClaim", name=TEXT, persistentVolumeClaim=fields("claimName", claimName=TEXT)),
    ]
}
CONTAINER = fields(
    "name",
    name=TEXT,
    image=TEXT,
    resources=fields(requests=TEXTS, limits=TEXTS),
    env={"type": "array", "items": VARIABLE},
    volumeMounts={"type": "array", "items": fields("name", "mountPath", name=TEXT, mountPath=TEXT)},
)
TOLERATION = fields(key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT)
POD = fields(
    spec=fields(
        "containers",
        terminationGracePeriodSeconds=NUMBER,
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": VOLUME},
        serviceAccountName=TEXT,
        imagePullSecrets={"type": "array", "items": fields("name", name=TEXT)},
        nodeSelector=TEXTS,
        tolerations={"type": "array", "items": TOLERATION},
    )
)
WORKER_GROUP = fields(
    *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=fields("rayStartParams", "template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields("name", name={"type": "string", "maxLength": 47}, namespace=TEXT, labels=TEXTS),
    spec=fields(
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypoint=TEXT,
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=RAY_CLUSTER,
    ),
)


@pytest.mark.parametrize("words", [TWO_BY_EIGHT, SMALL, EVERYTHING])
def test_every_field_is_one_of_kuberays(words: list[str]) -> None:
    manifest = yaml.safe_load(text_of(words))
    Draft202012Validator(RAY_JOB).validate(manifest)
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == {
            v["name"] for v in spec["volumes"]
        }


def test_the_entrypoint_is_read_by_a_shell_as_it_was_typed() -> None:
    entrypoint = yaml.safe_load(text_of(EVERYTHING))["spec"]["entrypoint"]
    printed = subprocess.run(
        ["sh", "-c", entrypoint.replace("python3", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[:4] == ["-P", "-m", "launch.cli", "train"]
    assert printed[4:] == EVERYTHING


def test_shared_memory_follows_the_plans_snapshots() -> None:
    def shm_mib(*words: str) -> int:
        cluster = yaml.safe_load(text_of([*TWO_BY_EIGHT, *words]))["spec"]["rayClusterSpec"]
        volumes = cluster["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
        return int(volumes[0]["emptyDir"]["sizeLimit"].removesuffix("Mi"))

    # ZeRO 1 over 16 ranks: 12 bytes a parameter for all, half of it on each node, 7 times: 5 slots and 2 copies.
    state_mib = 12 * 1_315_723_264 / 2 * 7 / 2**20
    assert shm_mib() == pytest.approx(state_mib + 1024, rel=0.01)
    assert shm_mib("snapshot.replicate_every_steps=0") < shm_mib() / 2


def test_every_problem_is_named_at_once() -> None:
    words = [
        *("cluster=kuberay", "model=tiny", "run.id=My_Run", "cluster.num_workers=16", "cluster.workers_per_node=8"),
        *("train.global_batch_size=64", "cluster.device=cuda", "data.path=prepared", "checkpoint.url=/tmp/c"),
        "cluster.address=head:6379",
        "cluster.kuberay.gpus_per_node=4",
        "cluster.kuberay.cpus_per_node=4",
        "cluster.kuberay.memory_per_node=lots",
        "cluster.kuberay.claims={shared:relative}",
        "cluster.kuberay.namespace=Wrong_Name",
        "cluster.kuberay.labels={queue:'a b'}",
        "cluster.kuberay.tolerations={_x:null}",
        "cluster.kuberay.environment={1A:x,B:[1],KEY:1}",
        "cluster.kuberay.secrets={KEY:wandb}",
    ]
    composed = compose(words)
    with pytest.raises(ConfigError) as refused:
        manifest_text(composed.config, ["--config-dir=/home/me/conf", *composed.overrides], "cuda")
    expected = (
        "run.id=My_Run can't name a RayJob",
        "cluster.kuberay.image is not set",
        "cluster.address=head:6379 can't be used with submit",
        "cluster.kuberay.gpus_per_node=4 is fewer than cluster.workers_per_node=8",
        "cluster.kuberay.cpus_per_node=4 is fewer than",
        "cluster.kuberay.memory_per_node=lots is not a size",
        "cluster.kuberay.claims.shared=relative is not a claim's name and an absolute path",
        "run.root=runs would be lost with its pod; put it below a claim",
        "checkpoint.url=/tmp/c would be lost with its pod",
        "data.path=prepared is relative",
        "--config-dir is a folder of this machine",
        "cluster.kuberay.namespace=Wrong_Name is not a Kubernetes name",
        "cluster.kuberay.labels.queue=a b is not a label",
        "cluster.kuberay.tolerations._x=None is not a taint's key",
        "cluster.kuberay.environment.1A is not a variable's name",
        "cluster.kuberay.environment.B=[1] is not a text or a number",
        "cluster.kuberay.secrets.KEY=wandb is not SECRET/KEY",
        "cluster.kuberay.environment.KEY is in cluster.kuberay.secrets, too",
    )
    found = list(refused.value.problems)
    assert [next((part for part in expected if part in problem), problem) for problem in found] == list(expected)


def test_pods_too_small_for_their_snapshots_are_refused() -> None:
    with pytest.raises(ConfigError, match="memory_per_node=40Gi leaves nothing beside /dev/shm, which needs"):
        text_of([*TWO_BY_EIGHT, "cluster.kuberay.memory_per_node=40Gi"])


def test_workers_per_node_and_an_id_are_needed() -> None:
    composed = compose(["cluster=kuberay", "model=tiny", IMAGE, "data.path=/shared/data", "run.root=/shared"])
    composed.config.cluster.workers_per_node, composed.config.cluster.num_workers = None, 4
    with pytest.raises(ConfigError) as refused:
        manifest_text(composed.config, [], "cpu")
    assert "run.id is not set" in str(refused.value)
    assert "cluster.workers_per_node is not set" in str(refused.value)


def test_a_config_folder_is_named_as_the_pods_see_it() -> None:
    words = ["--config-dir=/home/me/conf", "cluster=ours"]
    assert pod_words(words, "/shared/conf") == (["--config-dir=/shared/conf", "cluster=ours"], True)


@pytest.mark.parametrize(("text", "number"), [("8Gi", 2**33), ("1.5G", 1_500_000_000), ("77", 77), ("2Ti", 2**41)])
def test_quantities(text: str, number: int) -> None:
    assert num_bytes(text) == number


KUBECTL = """#!/bin/sh
echo "$@" > arguments
/bin/cat > manifest
/bin/cat answer 1>&{stream}
exit {code}
"""


def typed(folder: Path, *words: str, kubectl: tuple[int, str] | None) -> "subprocess.CompletedProcess[str]":
    """`phalanx submit` where kubectl answers with this exit code and text, or is not there."""
    programs = folder / "bin"
    programs.mkdir()
    if kubectl is not None:
        code, answer = kubectl
        (folder / "answer").write_text(answer)
        program = programs / "kubectl"
        program.write_text(KUBECTL.format(code=code, stream=2 if code else 1))
        program.chmod(0o755)
    environment = os.environ | {"PATH": str(programs)}
    command = [sys.executable, "-m", "launch.cli", "submit", *SMALL, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_submit_hands_the_manifest_to_kubectl(tmp_path: Path) -> None:
    done = typed(tmp_path, kubectl=(0, "rayjob.ray.io/first created\n"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rayjob.ray.io/first created\n")
    assert "kubectl delete rayjob first" in done.stdout
    assert (tmp_path / "arguments").read_text() == "create -f -\n"
    assert (tmp_path / "manifest").read_text() == text_of(SMALL)


@pytest.mark.parametrize(
    ("answer", "way_out"),
    [
        ('Error from server (AlreadyExists): rayjobs.ray.io "first" already exists', "kubectl delete rayjob first"),
        ('error: no matches for kind "RayJob" in version "ray.io/v1"', "install KubeRay"),
        ("The connection to the server was refused", "look at the manifest with --dry-run"),
    ],
)
def test_what_kubernetes_refuses_is_said_in_a_sentence(tmp_path: Path, answer: str, way_out: str) -> None:
    done = typed(tmp_path, kubectl=(1, answer))
    assert done.returncode == 2
    assert done.stderr.startswith(f"Kubernetes refuses the RayJob: {answer}; ")
    assert way_out in done.stderr
    assert done.stdout == ""


def test_without_kubectl_there_is_one_sentence(tmp_path: Path) -> None:
    done = typed(tmp_path, kubectl=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kubectl is not on the PATH; install it, or print the manifest with --dry-run")
    assert len(done.stderr.splitlines()) == 1
