"""Ways to start a child program and to stay in touch with it: one tiny interface, one file per way.

Here: processes. Not here: what the child is (doors give the whole argv), what became of a job (jobs), which devices
it may use (devices). A launcher hands over no secret: the child inherits this process's variables, and a
stranger's only few of them.

    argv ──start──> Handle ──poll, wait──> exit status, negative for a signal
                           <──signal──    passed on to the child alone, never to its group
                           ──failure──>   of several: which failed first, and why; of a limit: which

    local      a process in a session of its own, its output in a file
    confined   the same for a stranger: few variables, limits, its end named
    torchrun   several processes on this machine, and perhaps more on others
    inline     in this very process, for a debugger

Engines are another interface: they queue a job and start it elsewhere, after this process has gone. They are imported
when they are asked.

    Request ──prepare──> script or manifest ──submit──> engine id ──poll, signal, cancel

    slurm, ray, kubernetes
"""

from trn.launch.inline import InlineLauncher
from trn.launch.launcher import Handle, Launcher
from trn.launch.local import LocalLauncher, become
from trn.launch.torchrun import Layout, TorchrunLauncher

__all__ = ["Handle", "InlineLauncher", "Launcher", "Layout", "LocalLauncher", "TorchrunLauncher", "become"]
