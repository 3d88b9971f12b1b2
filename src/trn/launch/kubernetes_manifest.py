"""What trn tells Kubernetes of a job: a Job for one machine, a JobSet for several, as JSON (which is YAML).

    one machine      batch/v1 Job, restartPolicy Never; podFailurePolicy reads the exit code of the door
                       Ignore   a disruption, AGAIN_UNCOUNTED        a new pod, not counted
                       FailJob  FINAL                                nobody tries in vain
                       the rest counts against backoffLimit, which is --max-restarts
    several          jobset.x-k8s.io/v1alpha2 JobSet of one Indexed Job: a pod on each machine, which meet at the first;
                     the whole set starts again, --max-restarts times, unless the Job failed by FailJob

Nothing of this machine goes along: the image has trn and the trainer's code, --volume brings spec, data and runs, all
at the same paths as here. Secrets come from the cluster's own, by --secret. Not here: asking a cluster (kubernetes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trn.errors import UsageError
from trn.launch.engine import AGAIN_UNCOUNTED, FINAL, Request

__all__ = ["CONTAINER", "KEYS", "POD", "Setting", "manifest_of", "name_of"]

Json = dict[str, Any]

KEYS = {
    "context": "kubectl's context; else its current one",
    "gpu": "the resource that --device-count asks for; else nvidia.com/gpu",
    "memory": "what the pod asks for and may use, as Kubernetes writes it: 16Gi",
    "namespace": "where the job is made; else kubectl's current one",
    "queue": "the local queue of Kueue",
    "service_account": "as whom the pod runs; it gets no token of it",
    "user": "the number of the user, and of the group that owns volumes; else the image's",
}
"""What `--kubernetes KEY=VALUE` knows."""

CONTAINER = "trn"
POD = "pod"
"""The replicated job of a set."""

_PORT = 29500
_SPARE_S = 30
_KEPT_S = 7 * 86400
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Setting:
    """What a pod needs besides the job: `options` of KEYS, `volumes` CLAIM:PATH, `secrets` NAME=SECRET/KEY."""

    image: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[str] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)


def name_of(job_id: str) -> str:
    """A name that may be a label of an address: what is added to it for pods still fits."""
    return f"trn-{job_id.lower().replace('_', '-').replace('.', '-')}"[:48].rstrip("-")


def manifest_of(request: Request, setting: Setting, name: str, engine_id: str) -> Json:
    """The manifest of a Job or a JobSet called `name`. Raises UsageError for what no cluster could take."""
    if not setting.image or not setting.image.isprintable() or " " in setting.image:
        raise UsageError(
            f"expected the image to run, found {setting.image!r}.",
            where="--image",
            hint="Give one with trn and the trainer's code, by its digest: NAME@sha256:...",
        )
    metadata: Json = {"name": name, "labels": _labels(setting)}
    if "namespace" in setting.options:
        metadata["namespace"] = setting.options["namespace"]
    job = {"spec": _job(request, setting, name, engine_id)}
    manifest = _job_set(request, job) if request.nodes > 1 else {"apiVersion": "batch/v1", "kind": "Job", **job}
    return {**manifest, "metadata": metadata}


def _labels(setting: Setting) -> Json:
    labels = {"app.kubernetes.io/name": "trn", "app.kubernetes.io/managed-by": "trn"}
    if "queue" in setting.options:
        labels["kueue.x-k8s.io/queue-name"] = setting.options["queue"]
    return labels


def _job(request: Request, setting: Setting, name: str, engine_id: str) -> Json:
    is_set = request.nodes > 1
    spec: Json = {
        "backoffLimit": 0 if is_set else request.max_restarts,
        "podFailurePolicy": {"rules": _rules(is_set)},
        "template": {"spec": _pod(request, setting, name, engine_id)},
    }
    if is_set:
        return spec | {"completions": request.nodes, "parallelism": request.nodes, "completionMode": "Indexed"}
    return spec | {"ttlSecondsAfterFinished": _KEPT_S}


def _pod(request: Request, setting: Setting, name: str, engine_id: str) -> Json:
    volumes, mounts = _volumes(setting.volumes)
    security: Json = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if user := setting.options.get("user"):
        number = _user(user)
        security |= {"runAsUser": number, "runAsGroup": number, "fsGroup": number}
    pod: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(request.grace_s) + _SPARE_S,
        "automountServiceAccountToken": False,
        "securityContext": security,
        "containers": [
            {
                "name": CONTAINER,
                "image": setting.image,
                "command": _command(request, name),
                "workingDir": request.cwd,
                "env": [*_variables(request, engine_id), *_secrets(setting.secrets)],
                "resources": _resources(request, setting),
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if account := setting.options.get("service_account"):
        pod["serviceAccountName"] = account
    return pod


def _resources(request: Request, setting: Setting) -> Json:
    asked: Json = {}
    if request.cpus:
        asked["cpu"] = str(request.cpus)
    if memory := setting.options.get("memory"):
        asked["memory"] = memory
    if request.devices:
        asked[setting.options.get("gpu", "nvidia.com/gpu")] = str(request.devices)
    return {"requests": asked, "limits": dict(asked)} if asked else {}


def _job_set(request: Request, job: Json) -> Json:
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": request.max_restarts,
                "rules": [
                    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [{"name": POD, "replicas": 1, "template": job}],
            "ttlSecondsAfterFinished": _KEPT_S,
        },
    }


def _rules(is_set: bool) -> list[Json]:
    """In a set no pod is replaced alone: the others wait for it where it was, so that the whole set begins anew."""
    final = {"action": "FailJob", "onExitCodes": _exit_codes(FINAL)}
    if is_set:
        return [final]
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [disrupted, {"action": "Ignore", "onExitCodes": _exit_codes(AGAIN_UNCOUNTED)}, final]


def _exit_codes(codes: Sequence[int]) -> Json:
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}


def _command(request: Request, name: str) -> list[str]:
    # a dollar sign would begin the name of a variable
    command = [part.replace("$", "$$") for part in ("python", "-u", "-P", "-m", "trn", *request.arguments)]
    if request.nproc:
        command += ["--nproc", str(request.nproc)]
    if request.nodes > 1:
        command += ["--nnodes", str(request.nodes), "--node-rank", "$(TRN_NODE_RANK)"]
        # set, replicated job, its number, pod; within the set's own service
        command += ["--rdzv-endpoint", f"{name}-{POD}-0-0.{name}:{_PORT}"]
    return command


def _variables(request: Request, engine_id: str) -> Iterator[Json]:
    yield {"name": "TRN_LAUNCHER", "value": "kubernetes"}
    yield {"name": "TRN_JOB_ID", "value": request.job_id}
    yield {"name": "TRN_ENGINE_ID", "value": engine_id}
    if request.nodes > 1:
        yield {"name": "TRN_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}


def _secrets(secrets: Mapping[str, str]) -> Iterator[Json]:
    for name, place in secrets.items():
        secret, slash, key = place.partition("/")
        if not (_VARIABLE.fullmatch(name) and slash and _SUBDOMAIN.fullmatch(secret) and _SECRET_KEY.fullmatch(key)):
            # not the text itself: somebody could have given the secret
            raise UsageError(
                "expected NAME=SECRET/KEY: a variable, the cluster's secret, and its key.", where="--secret"
            )
        yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _volumes(given: Sequence[str]) -> tuple[list[Json], list[Json]]:
    """Volumes and where they are mounted; memory that processes share is always one of them."""
    volumes: list[Json] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts: list[Json] = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, one in enumerate(given):
        claim, _, path = one.partition(":")
        if not _SUBDOMAIN.fullmatch(claim) or not path.startswith("/") or ":" in path or not path.isprintable():
            raise UsageError(f"expected CLAIM:/PATH, found {one!r}.", where="--volume")
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    return volumes, mounts


def _user(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**31):
        raise UsageError(f"expected the number of a user that is not root, found {text!r}.", where="--kubernetes user")
    return int(text)
