"""Kubernetes, asked with kubectl: a Job or a JobSet made, seen with its pods, signalled, deleted.

The engine id is job/NAME or jobset/NAME, with ?context=C&namespace=N where they were given. What a manifest says:
kubernetes_manifest.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from trn.errors import EngineError
from trn.launch.engine import Engine, Prepared, Request, Seen, ask
from trn.launch.kubernetes_manifest import CONTAINER, KEYS, POD, Setting, manifest_of, name_of

__all__ = ["KEYS", "KubernetesEngine"]

Json = dict[str, Any]

_KINDS = {"job": "job.batch", "jobset": "jobset.jobset.x-k8s.io"}
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class KubernetesEngine(Engine):
    """Asks with kubectl, which finds its cluster as it always does.

    `options` are of KEYS; `volumes` CLAIM:PATH; `secrets` NAME=SECRET/KEY, of which only the three names are written.
    """

    def __init__(
        self,
        image: str = "",
        options: Mapping[str, str] | None = None,
        *,
        volumes: Sequence[str] = (),
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._setting = Setting(image, dict(options or {}), tuple(volumes), dict(secrets or {}))

    def prepare(self, request: Request) -> Prepared:
        name = name_of(request.job_id)
        engine_id = _engine_id("jobset" if request.nodes > 1 else "job", name, self._setting.options)
        return Prepared(name, json.dumps(manifest_of(request, self._setting, name, engine_id), indent=2) + "\n")

    def submit(self, prepared: Prepared) -> str:
        kind = "jobset" if json.loads(prepared.text)["kind"] == "JobSet" else "job"
        engine_id = _engine_id(kind, prepared.name, self._setting.options)
        ask(["kubectl", *_place(engine_id)[1], "create", "-f", "-"], text=prepared.text, within="Kubernetes")
        return engine_id

    def poll(self, engine_id: str) -> Seen:
        (kind, name), place = _place(engine_id)
        get = ["kubectl", *place, "get", "--ignore-not-found", "-o", "json"]
        said = ask([*get, _KINDS[kind], name], within="Kubernetes")
        if not said.strip():
            return Seen("gone")
        status = _read(said).get("status") or {}
        selector = f"{'job-name' if kind == 'job' else 'jobset.sigs.k8s.io/jobset-name'}={name}"
        pods = _read(ask([*get, "pods", "-l", selector], within="Kubernetes") or "{}").get("items") or []
        try:
            return _seen(status, pods)
        except (AttributeError, TypeError) as error:
            raise EngineError("expected the status of a job and its pods from kubectl.", where="Kubernetes") from error

    def cancel(self, engine_id: str) -> None:
        (kind, name), place = _place(engine_id)
        ask(
            ["kubectl", *place, "delete", "--ignore-not-found", "--wait=false", _KINDS[kind], name], within="Kubernetes"
        )

    def signal(self, engine_id: str, number: int) -> None:
        (kind, name), place = _place(engine_id)
        target = f"job.batch/{name}" if kind == "job" else f"job.batch/{name}-{POD}-0"
        # the door is the first process of its container
        send = ["python", "-c", f"import os; os.kill(1, {int(signal.Signals(number))})"]
        ask(["kubectl", *place, "exec", target, "-c", CONTAINER, "--", *send], within="Kubernetes")


def _engine_id(kind: str, name: str, options: Mapping[str, str]) -> str:
    place = urlencode({key: options[key] for key in ("context", "namespace") if key in options})
    return f"{kind}/{name}" + (f"?{place}" if place else "")


def _place(engine_id: str) -> tuple[tuple[str, str], list[str]]:
    """Kind and name, and kubectl's options; the store could have been written by anybody."""
    path, _, query = engine_id.partition("?")
    kind, _, name = path.partition("/")
    given = dict(parse_qsl(query))
    if kind not in _KINDS or not _LABEL.fullmatch(name) or set(given) - {"context", "namespace"}:
        raise EngineError(f"expected job/NAME or jobset/NAME, found {engine_id[:80]!r}.", where="Kubernetes")
    return (kind, name), [f"--{key}={value}" for key, value in sorted(given.items())]


def _read(said: str) -> Json:
    try:
        found = json.loads(said)
    except ValueError as error:
        raise EngineError("expected JSON from kubectl, found something else.", where="Kubernetes") from error
    return found if isinstance(found, dict) else {}


def _seen(status: Json, pods: Sequence[Json]) -> Seen:
    """A Job's conditions, or a JobSet's, and what became of the pods."""
    states = [pod.get("status") or {} for pod in pods]
    code = _exit_code(states)
    for condition in status.get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition.get("type") in ("Complete", "Completed"):
            return Seen("ended", 0, "Complete")
        if condition.get("type") == "Failed":
            said = ": ".join(str(condition[key]) for key in ("reason", "message") if condition.get(key))
            return Seen("ended", code, said or "Failed")
        if condition.get("type") == "Suspended":
            return Seen("queued", None, "Suspended")
    if any(state.get("phase") == "Running" for state in states):
        return Seen("running", None, "Running")
    waits = [
        condition.get("reason")
        for state in states
        for condition in state.get("conditions") or []
        if condition.get("status") == "False" and condition.get("reason")
    ]
    return Seen("queued", None, str(waits[0]) if waits else "Pending")


def _exit_code(states: Sequence[Json]) -> int | None:
    """Of the container that ended last."""
    ended = [
        container.get("state", {}).get("terminated") or {}
        for state in states
        for container in state.get("containerStatuses") or []
        if container.get("name") == CONTAINER
    ]
    codes = [(str(one.get("finishedAt")), one["exitCode"]) for one in ended if isinstance(one.get("exitCode"), int)]
    return max(codes)[1] if codes else None
