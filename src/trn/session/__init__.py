"""A run around somebody else's loop: `with trn.open_run(spec) as run:` in the user's own process.

Here: what the runner does around its loop, turned inside out, so that the loop may be written by hand. Not here: the
order of a step's ends, planning, folder, checkpoints and outcome: all these are the runner's and the loop's own parts.

    open_run ─> spec ─> plan ─> folder, lock ─> `with` ─┐
        run.track(model=..., optimizer=...)  restored   │
        for batch in run.feed:  <── what was due after the step before: evaluation, checkpoint, stop?
            ... run.gate(...) ... step ... run.log(...)  ──> line, gates
    outcome <────────────────────────────────────────────┘

    opening     a new run, or one that exists, up to its held lock
    tracked     the objects that survive a kill
    own_loop    what the rooms below see in the place of a trainer
    steps       a step asked for and a step made
    no_data     what a loop takes that brings its own
    job         from the held lock to the outcome
    run         what the user has in hand
    block       `with`
"""

from trn.session.block import open_run
from trn.session.run import Run

__all__ = ["Run", "open_run"]
