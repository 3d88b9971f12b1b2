"""The journal, sent elsewhere: sinks, and the relay that feeds them from the files of a run.

    events.jsonl ──────────────> relay ──send──> EventSink    file, Redis, web hook, standard output
    train_metrics.jsonl, val_ ─> relay ──write─> CurveSink    TensorBoard, MLflow, W&B, Prometheus
                                   └──> .trn/sinks/RUN/TARGET.json   how far, and how it stands

The disk is the truth: a relay reads what a run has written, in a process of its own, and remembers how far each target
is. A target that is slow, full or gone is asked again, and waited for at the end no longer than 30 s; `trn relay` can
bring it up to date at any time. Not here: what a target is called (trn.addresses), and who starts a relay (trn.doors).
"""
