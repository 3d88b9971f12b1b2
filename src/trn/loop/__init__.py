"""The training loop: one function on one page, and the few values that go through it.

Here: the order of things in a step, when cadences are due, how a run is stopped. Not here: what a step computes
(trainer), how anything is written (journal, checkpoint), how a run starts and what its end means (runner).

    feed ─raw batch─> transform? ─> prepare_batch ─> train_step ─> finite? ─> journal line
                         ─> evaluate? sample? checkpoint? ─> stop?

The modules are imported by name (`trn.loop.stop` needs no torch, so that signals are in place before it is imported).
"""
