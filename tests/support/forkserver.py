"""Child processes that have torch imported already: a hundred killed runs in the time of a few.

The server imports once, then forks for each request; a fork runs `trn.runner` as `python -m trn.runner` would, or a
script as `python SCRIPT` would, in a session of its own, with its output in a file. The forks are real processes: they
are killed for real.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

OPERATIONS = "operations: "
"""Before the last line's number of durable operations that an armed failpoint has counted."""


class ForkServer:
    """`start` gives a pid to kill, `wait` its exit status as subprocess would tell it."""

    def __init__(self) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def start(
        self, argv: list[str], log: Path, fault: str | None = None, cwd: Path | None = None, script: Path | None = None
    ) -> int:
        place = {"log": str(log), "cwd": str(cwd or Path.cwd()), "script": str(script) if script else None}
        return int(self._ask({"start": argv, "fault": fault, **place}))

    def wait(self, pid: int) -> int:
        return int(self._ask({"wait": pid}))

    def run(self, argv: list[str], log: Path, fault: str | None = None, cwd: Path | None = None) -> int:
        return self.wait(self.start(argv, log, fault, cwd))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)  # a loaded machine takes its time to unload torch


def _serve() -> None:
    import torch

    from trn import files
    from trn.runner import __main__ as runner
    from trn.runner import start  # noqa: F401 - imports torch and every room of the runner, once
    from trn.session import open_run  # noqa: F401 - a little more

    # the first optimizer of a process imports torch._dynamo, which takes seconds
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            running.discard(request["wait"])
            print(json.dumps(status), flush=True)
            continue
        pid = os.fork()
        if pid:
            running.add(pid)
            print(json.dumps(pid), flush=True)
            continue
        os.setsid()
        os.chdir(request["cwd"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        files.set_fault(request["fault"])
        code = 1
        try:
            code = _run_script(request) if request["script"] else runner.main(request["start"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(2, f"{OPERATIONS}{files.fault_count()}\n".encode())
            os._exit(code)
    for pid in running:  # of tests that failed before they could wait for them
        os.kill(pid, signal.SIGKILL)


def _run_script(request: dict[str, Any]) -> int:
    sys.argv = [request["script"], *request["start"]]
    sys.path[0] = str(Path(request["script"]).parent)
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001 - what a script raises is told and ends it, as python does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
