"""runtime_env.json: the variables that decide how a run behaves, by an allow-list, and where it runs.

Never the whole environment: what is not listed is not recorded, and what is called like a secret is not recorded even
where a listed prefix covers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trn.provenance.machine import platform_facts
from trn.provenance.redact import Redactor
from trn.provenance.secret_names import is_secret_name

__all__ = ["ALLOWED_NAMES", "ALLOWED_PREFIXES", "allowed_variables", "launcher", "runtime_env", "upstream"]

SCHEMA_VERSION = 1


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED_NAMES = _words(
    """
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE
    NVIDIA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES
    PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_DISABLE_SHARE_RDZV_TCP_STORE
    NCCL_DEBUG NCCL_SOCKET_IFNAME NCCL_IB_DISABLE NCCL_P2P_DISABLE NCCL_ALGO NCCL_PROTO GLOO_SOCKET_IFNAME
    OMP_NUM_THREADS OMP_PROC_BIND OMP_DYNAMIC MKL_NUM_THREADS MKL_CBWR MKL_DYNAMIC OPENBLAS_NUM_THREADS
    NUMEXPR_NUM_THREADS KMP_AFFINITY ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA MALLOC_ARENA_MAX
    LD_PRELOAD PYTHONHASHSEED PYTHONOPTIMIZE LANG LC_ALL TZ
    RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_NAME ROLE_RANK
    ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS
    HF_HOME HF_HUB_OFFLINE TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE TRANSFORMERS_DISABLE_TORCH_CHECK TORCH_HOME
    TOKENIZERS_PARALLELISM ROOT_IMAGE_DIR CONDA_DEFAULT_ENV CONDA_PREFIX VIRTUAL_ENV
    WORKER_MODE TRAINER_PLUGIN TRAINER_ORCHESTRATED TRAINER_JOB_SPEC_PATH TRAINER_ARTIFACTS_DIR
    TRAINER_MAX_RUNTIME_SECONDS
    """
)
ALLOWED_PREFIXES = ("TRN_", "SLURM_")

_MAX_VALUE_CHARS = 4096
_UPSTREAM = (
    "torch",
    "numpy",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "transformers",
    "tokenizers",
    "onnx",
    "onnxruntime",
)
_WORLD = {
    "world_size": ("WORLD_SIZE", "SLURM_NTASKS"),
    "rank": ("RANK", "SLURM_PROCID"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
    "local_world_size": ("LOCAL_WORLD_SIZE",),
    "nodes": ("GROUP_WORLD_SIZE", "SLURM_NNODES"),
    "node_rank": ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID"),
    "restart_count": ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"),
}


def runtime_env(environ: Mapping[str, str], redactor: Redactor, libraries: Iterable[str] = ()) -> dict[str, Any]:
    """The content of runtime_env.json: `{schema_version, env, platform, upstream, launcher}`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "env": allowed_variables(environ, redactor),
        "platform": platform_facts(),
        "upstream": upstream(libraries),
        "launcher": redactor.value(launcher(environ)),
    }


def allowed_variables(environ: Mapping[str, str], redactor: Redactor) -> dict[str, str]:
    """The variables on the allow-list, sorted by name; unset and blank ones are left out, values are redacted."""
    return {
        name: redactor.text(environ[name])[:_MAX_VALUE_CHARS]
        for name in sorted(environ)
        if environ[name].strip() and _is_allowed(name)
    }


def upstream(libraries: Iterable[str] = ()) -> dict[str, dict[str, str]]:
    """For each library that numbers can depend on, `{version}` or `{error}`; nothing is imported for it."""
    return {name: _installed(name) for name in dict.fromkeys((*_UPSTREAM, *libraries))}


def launcher(environ: Mapping[str, str]) -> dict[str, Any]:
    """Who started this process and its place among the others; numbers are null where nobody told."""
    kinds = {"TORCHELASTIC_RUN_ID": "torchrun", "SLURM_JOB_ID": "slurm"}
    topology = {field: _number(environ, names) for field, names in _WORLD.items()}
    return {
        "kind": next((kind for name, kind in kinds.items() if environ.get(name)), "local"),
        **topology,
        "master_addr": environ.get("MASTER_ADDR") or None,
        "master_port": _number(environ, ("MASTER_PORT",)),
        "slurm_job_id": environ.get("SLURM_JOB_ID") or None,
    }


def _is_allowed(name: str) -> bool:
    return (name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES)) and not is_secret_name(name)


def _installed(name: str) -> dict[str, str]:
    try:
        return {"version": version(name)}
    except PackageNotFoundError:
        return {"error": "not installed"}


def _number(environ: Mapping[str, str], names: Iterable[str]) -> int | None:
    texts = (environ.get(name, "").strip() for name in names)
    return next((int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 19), None)
