"""A part of trn in a process whose every audited event is written down: `python audited.py REPORT MODULE ARGUMENT...`

The report is a JSON list of `{"phase", "event", "detail", "by", "is_import"}`: `phase` is "before" until the journal
says `started`, then "after"; `by` is the module of the nearest frame that is not the interpreter's own; `is_import`
says whether the import of a module was going on. Python's audit events are at docs.python.org/3/library/audit_events.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["STARTED", "audited"]

STARTED = "trn.started"
WATCHED = frozenset(
    {
        STARTED,
        *("pickle.find_class", "marshal.loads", "exec", "compile", "code.__new__", "function.__new__", "os.system"),
        *("os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen"),
        *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"),
        *("urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect", "webbrowser.open"),
        *("ctypes.dlopen", "shutil.unpack_archive", "sys.addaudithook", "os.putenv", "syslog.openlog"),
    }
)
_IMPORT = "importlib._bootstrap"
_phase = "before"
_events: list[dict[str, Any]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in WATCHED:
        return
    frame: Any = sys._getframe(1)
    names = []
    while frame is not None:
        names.append(str(frame.f_globals.get("__name__", "")))
        frame = frame.f_back
    by = next((name for name in names if not name.startswith(_IMPORT)), "")
    is_import = any(name.startswith(_IMPORT) for name in names)
    one = {"phase": _phase, "event": event, "detail": _detail(event, arguments), "by": by, "is_import": is_import}
    _events.append(one)


def _detail(event: str, arguments: tuple[Any, ...]) -> str:
    """What it was about: the program, the file of the code, the address."""
    if event == "subprocess.Popen":
        return " ".join(map(str, arguments[1]))
    if event == "exec":
        return str(getattr(arguments[0], "co_filename", ""))
    if event == "compile":
        return f"{arguments[1]}: {str(arguments[0])[:80]}"
    return " ".join(str(argument)[:80] for argument in arguments)


def audited(report: Path, module: str, *arguments: str, **options: Any) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, what was printed, and the events of `module.main(arguments)` in a process of its own."""
    command = [sys.executable, "-P", __file__, str(report), module, *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr, json.loads(report.read_text())


def _main() -> int:
    global _phase
    report, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sys.addaudithook(_hook)
    code = 1
    try:
        code = importlib.import_module(f"{module}.__main__").main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        events = list(_events)
        Path(report).write_text(json.dumps(events))
    return code


def _tell_phases() -> None:
    """Let the event `started` of the journal begin the second phase."""
    from trn.journal import EventLog

    emit = EventLog.emit

    def told(self: EventLog, event: str, **fields: Any) -> None:
        global _phase
        emit(self, event, **fields)
        if event == "started":
            _phase = "after"
            sys.audit(STARTED)  # seen like any other: the hook is there, also where nothing else happens from now on

    EventLog.emit = told  # type: ignore[method-assign]


if __name__ == "__main__":
    _tell_phases()
    sys.exit(_main())
