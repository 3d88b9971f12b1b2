"""How people reach the house: the command line, and what it shows.

Here: verbs, options, words on a terminal, exit codes. Not here: anything that plans or trains. A door starts
`python -m trn.runner` and its like as child programs, watches the folder that they write, and says how it ended; it
never imports torch, a trainer, the plan or the loop. `cli`, `listing` and `read` stay near the bare interpreter.

    cli ──by name──> work    run, resume, verify, data, schema
                     listing list
                     read    status, logs
                     init, doctor, gc, completion    each in a module of its name
    work ──> foreground ──> launch ──process wall──> runner ──> the run's folder
                 └── follow ── standing ── progress <────────────────┘
"""

__all__: list[str] = []
