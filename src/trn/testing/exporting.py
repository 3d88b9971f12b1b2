"""The promise of a trainer that exports: the file computes what the model does."""

from __future__ import annotations

from trn.export import export_checkpoint
from trn.testing.promise import BrokenPromise
from trn.testing.steps import newest_of
from trn.testing.subject import Subject, restore_objects
from trn.trainer.exporting import has_export

__all__ = ["exports"]


def exports(subject: Subject) -> None:
    """The last checkpoint becomes an ONNX file whose every output is that of the model, on several inputs."""
    plan, trainer = subject.plan("straight")
    if not has_export(trainer):
        raise BrokenPromise(
            "export", "expected a hook export(batch, state, ctx), found none.", hint="Add it, or leave out export=True."
        )
    made, meta = restore_objects(subject, plan, trainer), newest_of(subject.ran().run_dir, plan).meta
    assert meta is not None, "the straight run has saved"
    (written,) = export_checkpoint(plan, trainer, made.state, made.ctx, meta, formats=("onnx",))
    parity = written.parity or {}
    if parity.get("status") != "passed":
        raise BrokenPromise(
            "export",
            f"expected the file to compute what the model does, found {parity.get('status')}: {parity.get('reason')}.",
            where=str(written.sidecar),
            hint="What the hook exports must be the whole computation, in .eval(), with nothing drawn.",
        )
