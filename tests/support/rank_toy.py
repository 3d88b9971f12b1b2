"""Several processes that do what ranks do to their launcher, without torch: for tests of launch and doors.

    python rank_toy.py spawn N WHAT F   stands for torchrun: starts N ranks, each in a session of its own, and ends with
                                        the first status that is not 0; it leaves a file in the folder F
    python rank_toy.py rank WHAT        one rank, whose number is in RANK

WHAT: ok | wait (for a signal, or for the parent to vanish; ends with 75) | deaf (ignores what can be ignored) |
leave (starts a process that ignores SIGTERM, and ends) | exit=K:STATUS (rank K ends so, the others wait) |
kill=K (rank K kills itself, the others wait) | fail=K (rank K says why in the error file and ends with 70)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trn.ranks import error_file

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def spawn(size: int, what: str, folder: str) -> int:
    (Path(folder) / "started").touch()
    command = [sys.executable, __file__, "rank", what]
    ranks = [
        subprocess.Popen(command, env=os.environ | {"RANK": str(rank)}, start_new_session=True) for rank in range(size)
    ]
    say(f"spawned {os.getpid()}")
    status = 0
    while not status and (running := [one for one in ranks if one.poll() is None]):
        status = next((one.returncode for one in ranks if one.returncode), 0)
        time.sleep(0.02 if running else 0)
    status = status or next((one.returncode for one in ranks if one.returncode), 0)
    for one in ranks:
        if status and one.poll() is None:
            one.terminate()
    for one in ranks:
        one.wait()
    return status if status >= 0 else 128 - status


def rank_main(what: str) -> int:
    rank, parent = int(os.environ["RANK"]), os.getppid()
    received: list[int] = []
    word, _, value = what.partition("=")
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN if word == "deaf" else lambda number, _: received.append(number))
    say(f"rank {rank} is {os.getpid()}")
    if word == "ok":
        return 0
    if word == "leave":
        ignoring = "import signal, time; signal.signal(15, 1); print('left behind', flush=True); time.sleep(100)"
        with subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            os._exit(0)
    if word == "exit" and rank == int(value.partition(":")[0]):
        return int(value.partition(":")[2])
    if word == "kill" and rank == int(value):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "fail" and rank == int(value):
        error_file.write(70, "ValueError: a bad batch")
        return 70
    deadline = time.monotonic() + 100
    while (word == "deaf" or (not received and os.getppid() == parent)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # a signal that came twice would come now
    say(f"rank {rank} ends after {','.join(signal.Signals(number).name for number in received) or 'nothing'}")
    return 75


if __name__ == "__main__":
    sys.exit(spawn(int(sys.argv[2]), sys.argv[3], sys.argv[4]) if sys.argv[1] == "spawn" else rank_main(sys.argv[2]))
