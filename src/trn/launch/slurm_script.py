"""The script for sbatch: it starts the door on one machine, or one door on each of several, and asks for a restart.

    sbatch script ──> trn run ...           one machine: a child of the script
                 └──> srun trn run ...      several: one each, which meet at the first
    --signal=B:TERM@S: before the time is up the script gets a SIGTERM, and passes it on
    its exit code says whether the job goes on: `scontrol requeue`, or the next task of an array

What `#SBATCH` lines cannot carry is refused; everything else is quoted for bash. Not here: asking Slurm (slurm).
"""

from __future__ import annotations

import math
import re
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence

from trn.errors import UsageError
from trn.launch.engine import AGAIN, Request

__all__ = ["OVERRULED", "name_of", "script_of"]

_OURS = {
    "array": "Give --slurm-array and --max-restarts.",
    "chdir": "Start from the folder that is meant.",
    "cluster": "Set SLURM_CLUSTERS, which all programs of Slurm read.",
    "clusters": "Set SLURM_CLUSTERS, which all programs of Slurm read.",
    "cpus-per-task": "Give --cpus.",
    "gpus-per-node": "Give --device-count.",
    "job-name": "It is made from the run's id.",
    "no-requeue": "Leave --max-restarts out.",
    "nodes": "Give --nnodes.",
    "ntasks": "One door is started on each machine; give --nproc for its processes.",
    "ntasks-per-node": "One door is started on each machine; give --nproc for its processes.",
    "open-mode": "What is there is kept.",
    "output": "It is beside the job's log.",
    "requeue": "Give --max-restarts.",
    "signal": "It follows from limits.grace_seconds.",
    "wait": "`trn status` tells how it stands.",
    "wrap": "What is started is trn.",
}
OVERRULED = frozenset({"SBATCH_ARRAY_INX", *("SBATCH_" + key.upper().replace("-", "_") for key in _OURS)})
"""Variables by which sbatch would be told something else than by the script: they go before its lines."""
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_LEAST_S = 60  # Slurm looks at its clock once a minute
_SPARE_S = 30
_MOST_S = 65535
_KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
"""How the door ends that could not say any more how its run did."""

_BODY = """\
export TRN_LAUNCHER=slurm TRN_JOB_ID={job_id}
export TRN_ENGINE_ID="${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}"

# a signal comes to this script alone; it ends when the training has ended, and not before
asked=0 child=
pass_on() {{
    asked=$((asked + 1))
    [ -z "$child" ] || {kill}
}}
for name in TERM HUP USR1; do trap "pass_on $name" "$name"; done

{start} &
child=$!
[ "$asked" = 0 ] || pass_on TERM
while :; do
    before=$asked
    wait "$child"
    code=$?
    [ "$asked" != "$before" ] || break
done
{after}exit "$code"
"""
_MEETING = """\
# all machines meet at the first, by the address that Slurm itself knows it by
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol -o show node "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
# after a restart another port: the one before may be somebody else's
port=$((15000 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 15000))

"""
_REQUEUE = """\
case "$code" in
    {again})
        if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
            echo "trn: ended with $code; Slurm is asked to start it again" >&2
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
"""
_NEXT_TASK = """\
case "$code" in
    {again}) echo "trn: ended with $code; the next task goes on" >&2 ;;
    *) scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" ;; # nothing is left for the others
esac
"""


def name_of(run_id: str) -> str:
    """The job's name in Slurm."""
    return f"trn-{run_id}"


def script_of(request: Request, options: Mapping[str, str], *, is_array: bool, program: Sequence[str]) -> str:
    """What sbatch is given. Raises UsageError for what it cannot carry, and for `options` that are trn's own."""
    for key in options:
        if not _KEY.fullmatch(key) or key in _OURS:
            hint = _OURS.get(key, "Give the long name of an option of sbatch, without its dashes: partition=gpu.")
            raise UsageError(f"{key!r} cannot be set here.", where="--slurm", hint=hint)
    directives = [f"#SBATCH --{key}{_value(value)}" for key, value in _directives(request, options, is_array)]
    head = ["#!/bin/bash", f"# trn: run {request.run_id}, job {request.job_id}", *directives, ""]
    return "\n".join([*head, _body(request, is_array, program)])


def _directives(request: Request, options: Mapping[str, str], is_array: bool) -> Iterator[tuple[str, str]]:
    """Options of sbatch; "" for one without a value."""
    yield "job-name", name_of(request.run_id)
    yield "chdir", request.cwd
    if request.output:
        yield "output", _file(request.output)
        yield "open-mode", "append"
    yield "nodes", str(request.nodes)
    yield "ntasks-per-node", "1"
    if request.cpus:
        yield "cpus-per-task", str(request.cpus)
    if request.devices:
        yield "gpus-per-node", str(request.devices)
    warned_s = min(_MOST_S, max(_LEAST_S, math.ceil(request.grace_s) + _SPARE_S))
    yield "signal", f"B:TERM@{warned_s}"
    if is_array:
        yield "array", f"0-{request.max_restarts}%1"
    yield ("requeue" if request.max_restarts and not is_array else "no-requeue"), ""
    yield from options.items()


def _body(request: Request, is_array: bool, program: Sequence[str]) -> str:
    arguments = [*program, *request.arguments]
    if request.nproc:
        arguments += ["--nproc", str(request.nproc)]
    start, kill = shlex.join(arguments), 'kill -s "$1" "$child"'
    if request.nodes > 1:
        start = f'{_srun(request)} {start} --nnodes {request.nodes} --rdzv-endpoint "$address:$port"'
        kill = 'scancel --signal="$1" "$SLURM_JOB_ID"'
    again = "|".join(map(str, (*AGAIN, *_KILLED)))
    after = ""
    if is_array:
        after = _NEXT_TASK.format(again=again)
    elif request.max_restarts:
        after = _REQUEUE.format(again=again, most=request.max_restarts)
    body = _BODY.format(job_id=shlex.quote(request.job_id), kill=kill, start=start, after=after)
    return _MEETING + body if request.nodes > 1 else body


def _srun(request: Request) -> str:
    cores = f" --cpus-per-task={request.cpus}" if request.cpus else ""
    # the others end by themselves, each with its last checkpoint
    return f"srun --nodes={request.nodes} --ntasks={request.nodes} --ntasks-per-node=1{cores} --kill-on-bad-exit=0"


def _value(value: str) -> str:
    """`=VALUE` as sbatch reads it in a script: in double quotes a backslash keeps the next character."""
    if not value:
        return ""
    if not value.isprintable():
        raise UsageError(f"a script of Slurm cannot carry {value!r} in one line.", where="--launcher slurm")
    if re.fullmatch(r"[A-Za-z0-9_./:,@%+=-]+", value):
        return f"={value}"
    return '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _file(path: str) -> str:
    """A path in which Slurm fills in nothing; a backslash in one means something else to each of its versions."""
    if "\\" in path:
        raise UsageError("Slurm writes to no path with a backslash in it.", where=path, hint="Give another --runs-dir.")
    return path.replace("%", "%%")
