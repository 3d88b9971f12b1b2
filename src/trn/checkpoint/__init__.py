"""The state of a run on disk: committed whole, verified before it is believed, walked back when it is not.

Here: the snapshot between two steps, the thread that writes beside the loop, the meta that commits, discovery,
retention, and the streams of random numbers. Not here: what a trainer saves (its hooks), what a resume compares
(runner), when a checkpoint is due (loop).

    state ──snapshot──> kept buffers ──thread──> step-00000200.pt ──sync metrics──> step-00000200.meta.json (commit)
    a trainer's own files ──seal, publish──> step-00000200.files/ ──┘                └─> last.*, best.* ─> retention
    resume: metas, newest first ──verify──> payload, or `rejected` and the one before

The modules are imported by name (`trn.checkpoint.meta` needs no torch), so nothing is re-exported here.
"""
