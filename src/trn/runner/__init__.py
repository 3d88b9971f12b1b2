"""The process that trains: it plans or takes up a run, goes through the loop, and ends it truthfully.

Here: the command line of the child process, signals, restoring, the outcome. Not here: who started it (launch, doors),
the order of a step (loop). Beyond this wall a stranger's code is imported; doors never come here.

    trainer ──configure──> state ──live──> refused, where it is not what the plan says

    python -m trn.runner --config FILE   spec -> plan -> publish folder ┐
    python -m trn.runner --run-dir DIR   plan from the folder, compared ┴-> restore -> loop -> outcome -> exit code

With --contract FILE in the place of --config, a worker's contract names the spec and decoded data (contracted).
"""
