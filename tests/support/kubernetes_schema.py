"""JSON Schemas of the manifests that trn writes: the part of Kubernetes' and JobSet's interfaces that it uses.

Written by hand from the references of batch/v1 Job, v1 Pod and jobset.x-k8s.io/v1alpha2 JobSet. What is not here is
refused, so that a misspelt field cannot pass; what Kubernetes would check itself (patterns of names, the bounds of
numbers, which fields exclude each other) is written out as far as it concerns us.
"""

from __future__ import annotations

from typing import Any

__all__ = ["JOB", "JOB_SET"]

Schema = dict[str, Any]


def _object(required: dict[str, Any], **optional: Any) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema, least: int = 0, most: int = 1000) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_LABEL: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
_SUBDOMAIN: Schema = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", "maxLength": 253}
_LABELS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"},
}
_QUANTITIES: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"},
}
# a name that other names are made from: what is added to it, -pod-0-0-abcde, has to fit into a label
_METADATA = _object({"name": {**_LABEL, "maxLength": 49}, "labels": _LABELS}, namespace=_LABEL)

_PLAIN = _object({"name": _TEXT, "value": _TEXT})
_VARIABLE: Schema = {
    "oneOf": [
        _PLAIN,
        _object({"name": _TEXT, "valueFrom": _object({"fieldRef": _object({"fieldPath": _TEXT})})}),
        _object(
            {"name": _TEXT, "valueFrom": _object({"secretKeyRef": _object({"name": _SUBDOMAIN, "key": _TEXT})})},
        ),
    ]
}
_VOLUME: Schema = {
    "oneOf": [
        _object({"name": _LABEL, "emptyDir": _object({}, medium={"enum": ["", "Memory"]}, sizeLimit=_TEXT)}),
        _object({"name": _LABEL, "persistentVolumeClaim": _object({"claimName": _SUBDOMAIN})}),
    ]
}
_CONTAINER = _object(
    {
        "name": _LABEL,
        "image": {"type": "string", "minLength": 1},
        "command": _list(_TEXT, least=1),
        "workingDir": {"type": "string", "pattern": "^/"},
        "env": _list(_VARIABLE),
        "resources": _object({}, requests=_QUANTITIES, limits=_QUANTITIES),
        "securityContext": _object(
            {"allowPrivilegeEscalation": {"const": False}, "capabilities": _object({"drop": _list(_TEXT)})}
        ),
        "volumeMounts": _list(_object({"name": _LABEL, "mountPath": {"type": "string", "pattern": "^/[^:]*$"}})),
    }
)
_POD_SECURITY = _object(
    {"runAsNonRoot": {"const": True}, "seccompProfile": _object({"type": {"const": "RuntimeDefault"}})},
    runAsUser={"type": "integer", "minimum": 1},
    runAsGroup={"type": "integer", "minimum": 1},
    fsGroup={"type": "integer", "minimum": 1},
)
_POD = _object(
    {
        "restartPolicy": {"const": "Never"},  # a podFailurePolicy demands it
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1},
        "automountServiceAccountToken": {"const": False},
        "securityContext": _POD_SECURITY,
        "containers": _list(_CONTAINER, 1, 1),
        "volumes": _list(_VOLUME),
    },
    serviceAccountName=_SUBDOMAIN,
)
_EXIT_CODES = _object(
    {
        "operator": {"const": "In"},
        # 0 is no failure, and is refused here
        "values": {**_list({"type": "integer", "minimum": 1, "maximum": 255}, 1, 255), "uniqueItems": True},
    },
    containerName=_LABEL,
)
_CONDITION = _object({"type": {"const": "DisruptionTarget"}, "status": {"enum": ["True", "False", "Unknown"]}})
_ACTION: Schema = {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]}
_RULE: Schema = {
    "oneOf": [
        _object({"action": _ACTION, "onExitCodes": _EXIT_CODES}),
        _object({"action": _ACTION, "onPodConditions": _list(_CONDITION, 1, 20)}),
    ]
}
_JOB_SPEC = _object(
    {
        "backoffLimit": _COUNT,
        "podFailurePolicy": _object({"rules": _list(_RULE, 1, 20)}),
        "template": _object({"spec": _POD}, metadata=_object({}, labels=_LABELS)),
    },
    completions=_COUNT,
    parallelism=_COUNT,
    completionMode={"enum": ["NonIndexed", "Indexed"]},
    ttlSecondsAfterFinished=_COUNT,
)

JOB = _object({"apiVersion": {"const": "batch/v1"}, "kind": {"const": "Job"}, "metadata": _METADATA, "spec": _JOB_SPEC})

_SET_RULE = _object(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "maxLength": 128},
        "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
        "onJobFailureReasons": _list(
            {
                "enum": [
                    "BackoffLimitExceeded",
                    "DeadlineExceeded",
                    "FailedIndexes",
                    "MaxFailedIndexesExceeded",
                    "PodFailurePolicy",
                ]
            }
        ),
    }
)
JOB_SET = _object(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": _METADATA,
        "spec": _object(
            {
                "network": _object(
                    {"enableDNSHostnames": {"const": True}}, publishNotReadyAddresses={"type": "boolean"}
                ),
                "failurePolicy": _object({"maxRestarts": _COUNT, "rules": _list(_SET_RULE, 1, 20)}),
                "replicatedJobs": _list(
                    _object({"name": _LABEL, "replicas": _COUNT, "template": _object({"spec": _JOB_SPEC})}), 1, 50
                ),
            },
            ttlSecondsAfterFinished=_COUNT,
        ),
    }
)
