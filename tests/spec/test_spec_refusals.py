"""Mistaken specs: each is refused at its place, in plain words, with everything else that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trn.errors import Problem, SpecError
from trn.spec import Flag, load_spec

Write = Callable[..., Path]
Refuse = Callable[..., list[Problem]]

JARGON = ("pydantic", "http", "Input should", "type=", "Traceback", "validation error", "Extra inputs", "errors.")


def assert_plain(problem: Problem) -> None:
    text = str(problem)
    assert text.isprintable(), "one line without control characters"
    assert len(problem.message) <= 300
    assert not [word for word in JARGON if word in problem.message]


# what follows the good spec, the path that is refused, what the message says; all stand in line 9
MISTAKES = [
    # unknown keys
    ("sead: 1", "sead", "unknown key; did you mean seed?"),
    ("max-steps: 5", "max-steps", "did you mean max_steps?"),
    ("Threads: 5", "Threads", "did you mean threads?"),
    ("zzz: 5", "zzz", "unknown key; `trn schema` has all keys"),
    ("batch_size: 5", "batch_size", "did you mean dataset.batch_size?"),
    ("patience: 5", "patience", "did you mean gates.patience?"),
    ("extend: a.yaml", "extend", "did you mean extends?"),
    ("optimizer: {learning: 5}", "optimizer.learning", "known here: accumulate, betas, eps, fused, groups, lr"),
    ("optimizer: {betaz: [0, 0]}", "optimizer.betaz", "did you mean betas?"),
    ("ema: {seed: 5}", "ema.seed", "did you mean seed, as a key of the document itself?"),
    ("checkpoint: {best: {metrik: a}}", "checkpoint.best.metrik", "did you mean metric?"),
    ("gates: {a b: 1}", "gates.'a b'", "unknown key"),
    ("'a.b': 1", "'a.b'", "unknown key"),
    ("'\\x1b[31m': 1".replace("'", '"'), "'\\x1b[31m'", "unknown key"),
    ("'': 1", "''", "unknown key"),
    # types
    ("threads: '3'", "threads", "expected a whole number, found '3'"),
    ("threads: 1.5", "threads", "expected a whole number, found 1.5"),
    ("threads: true", "threads", "expected a whole number, found true"),
    ("threads: null", "threads", "expected a whole number, found null"),
    ("threads: .inf", "threads", "expected a whole number, found inf"),
    ("threads: [1]", "threads", "expected a whole number, found a list of 1"),
    ("threads: 2026-11-21", "threads", "expected a whole number, found '2026-11-21'"),
    ("clip_grad_norm: '1'", "clip_grad_norm", "expected a number, found '1'"),
    ("clip_grad_norm: .nan", "clip_grad_norm", "expected a finite number, found nan"),
    ("clip_grad_norm: 1e999", "clip_grad_norm", "expected a finite number, found inf"),
    ("clip_grad_norm: false", "clip_grad_norm", "expected a number, found false"),
    ("run_id: 20261121", "run_id", "expected text, found 20261121; put it in quotes"),
    ("owner: true", "owner", "expected text, found true; put it in quotes"),
    ("optimizer: {nesterov: 1}", "optimizer.nesterov", "expected true or false, found 1"),
    ("ema: {enabled: yes}", "ema.enabled", "expected true or false, found 'yes'"),
    ("ema: true", "ema", "expected a mapping (key: value), found true"),
    ("gates: [patience]", "gates", "expected a mapping (key: value), found a list of 1"),
    ("hyperparams: [a]", "hyperparams", "expected a mapping (key: value), found a list of 1"),
    ("optimizer: {betas: 0.9}", "optimizer.betas", "expected a list such as [a, b], found 0.9"),
    ("optimizer: {betas: [0.9]}", "optimizer.betas", "expected two numbers, found a list of 1"),
    ("optimizer: {betas: [0.9, 0.9, 0.9]}", "optimizer.betas", "expected two numbers, found a list of 3"),
    ("optimizer: {betas: [0.9, a]}", "optimizer.betas[1]", "expected a number, found 'a'"),
    # bounds
    ("threads: -1", "threads", "expected at least 0, found -1"),
    ("threads: 5000", "threads", "expected at most 4096, found 5000"),
    ("epochs: 0", "epochs", "expected at least 1, found 0"),
    ("checkpoint_every: -1", "checkpoint_every", "expected at least 0, found -1"),
    ("checkpoint_every: 9007199254740992", "checkpoint_every", "expected at most 9007199254740991"),
    ("checkpoint: {keep: 1}", "checkpoint.keep", "expected at least 2, found 1"),
    ("ema: {decay: 1}", "ema.decay", "expected less than 1, found 1"),
    ("ema: {decay: -0.1}", "ema.decay", "expected at least 0, found -0.1"),
    ("optimizer: {lr: 0}", "optimizer.lr", "expected more than 0, found 0"),
    ("optimizer: {betas: [0.9, 1]}", "optimizer.betas[1]", "expected less than 1, found 1"),
    ("gates: {patience: -1}", "gates.patience", "expected at least 0, found -1"),
    ("gates: {divergence_factor: 1}", "gates.divergence_factor", "expected more than 1, found 1"),
    ("guard: {lr_decay: 0}", "guard.lr_decay", "expected more than 0, found 0"),
    ("guard: {max_skips: 0}", "guard.max_skips", "expected at least 1, found 0"),
    ("export: {opset: 17}", "export.opset", "expected at least 18, found 17"),
    ("limits: {grace_seconds: 1}", "limits.grace_seconds", "expected at least 2, found 1"),
    ("validation: {manifest: ''}", "validation.manifest", "expected text, found ''"),
    ("validation: {manifest: '  '}", "validation.manifest", "expected a path"),
    ('validation: {manifest: "a\\0b"}', "validation.manifest", "expected a path, found"),
    ("validation: {parquet_paths: []}", "validation.parquet_paths", "expected at least one path, found an empty list"),
    ("validation: {parquet_paths: a.parquet}", "validation.parquet_paths", "expected a list such as [a, b], found"),
    ("validation: {parquet_paths: [1]}", "validation.parquet_paths[0]", "expected text, found 1"),
    ("runs_dir: s3://b/runs", "runs_dir", "expected a folder on this machine, found 's3://b/runs'"),
    # choices
    ("guard: {policy: skipp}", "guard.policy", "expected stop or skip (did you mean skip?), found 'skipp'"),
    ("gates: {regime: scratch}", "gates.regime", "expected finetune or from_scratch"),
    ("gates: {telemetry: true}", "gates.telemetry", "expected warn or stop, found true"),
    ("export: {parity_policy: null}", "export.parity_policy", "expected fail or warn, found null"),
    ("deterministic: 1", "deterministic", "expected true, warn or false, found 1"),
    ("deterministic: never", "deterministic", "expected true, warn or false, found 'never'"),
    ("trainer_api_version: v2", "trainer_api_version", "expected v1, found 'v2'"),
    ("schedule: {kind: a-b}", "schedule.kind", "expected the name of a schedule such as warmup_cosine"),
    ("schedule: {lr_max: 0.1}", "schedule.kind", "required, never defaulted; add it"),
    ("optimizer: {name: AdamW}", "optimizer.name", "expected a lower-case name such as adamw, found 'AdamW'"),
    # names
    ("run_id: ../../x", "run_id", "expected 1 to 64 of A-Z a-z 0-9 . _ -"),
    ("run_id: .hidden", "run_id", "the first one a letter or digit, found '.hidden'"),
    ('run_id: "a\\n"', "run_id", "found 'a\\n'"),
    ("run_id: ''", "run_id", "found ''"),
    ("run_id: jobs", "run_id", "expected an id that is not reserved"),
    ("run_id: " + "a" * 65, "run_id", "expected 1 to 64"),
    ("owner: " + "a" * 257, "owner", "expected at most 256 characters"),
    ('owner: "a\\u202eb"', "owner", "expected one line of at most 256 characters, found 'a\\u202eb'"),
    # hyperparams
    ("hyperparams: {a: .nan}", "hyperparams.a", "expected a finite number, found nan"),
    ("hyperparams: {a: {b: [1, -.inf]}}", "hyperparams.a.b[1]", "expected a finite number, found -inf"),
    ("hyperparams: {a: 36893488147419103232}", "hyperparams.a", "expected a number of at most 64 bits"),
    # rules between fields
    ("epochs: 3", "max_steps", "expected one budget, found max_steps and epochs; set one of them to null"),
    ("validation: {}", "validation", "expected parquet_paths or manifest, found neither"),
    ("validation: {every_steps: 1}", "validation", "expected parquet_paths or manifest, found neither"),
    ("dataset: {manifest: a}", "dataset", "the key stands here twice"),
    ("validation: {manifest: a, parquet_paths: [b]}", "validation.manifest", "expected one source"),
    ("optimizer: {accumulate: 5}", "dataset.batch_size", "a multiple of optimizer.accumulate (5), found 32"),
    ("optimizer: {nesterov: true}", "optimizer.nesterov", "needs optimizer.momentum above 0"),
    ("schedule: {kind: linear}", "schedule.lr_max", "a schedule needs a learning rate"),
    ("schedule: {kind: linear, lr_max: 1, warmup_steps: 1000}", "schedule.warmup_steps", "the budget's 1000 steps"),
    ("schedule: {kind: linear, lr_max: 0.1, lr_min: 0.2}", "schedule.lr_min", "at most the highest rate (0.1)"),
    ("ema: {evaluate: true}", "ema.evaluate", "needs ema.enabled: true"),
    ("gates: {require_target: true}", "gates.require_target", "needs gates.target_val_loss"),
]


@pytest.mark.parametrize(("more", "path", "message"), MISTAKES, ids=[mistake[0][:40] for mistake in MISTAKES])
def test_a_mistake_is_refused_at_its_place(write: Write, refuse: Refuse, more: str, path: str, message: str) -> None:
    file = write(more + "\n")
    problems = refuse(file)
    (problem,) = (one for one in problems if one.path == path)
    assert message in problem.message
    assert problem.file == str(file)
    assert problem.line in (9, 8, 3), "the mistake, or the other half of a broken rule"
    assert len(problems) <= 1 + ("schedule" in more) + ("epochs: 0" in more), "a mistake is reported once"
    for one in problems:
        assert_plain(one)


REQUIRED = {
    "config_version": "`config_version: 1`",
    "trainer": "`trainer: lm`",
    "dataset": '`dataset: {parquet_paths: ["data/*.parquet"]}`',
    "seed": "`seed: 42`",
    "device": "`device: cpu`",
    "precision": "`precision: none`",
    "ddp": "`ddp: false`",
}


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named_with_an_example(
    write: Write, refuse: Refuse, without_key: Callable[[str], str], key: str
) -> None:
    file = write(without_key(key), good=False)
    (problem,) = refuse(file)
    assert problem == Problem(key, f"required, never defaulted; write for example {REQUIRED[key]}", str(file))


def test_a_missing_budget_is_named(write: Write, refuse: Refuse, without_key: Callable[[str], str]) -> None:
    (problem,) = refuse(write(without_key("max_steps"), good=False))
    assert str(problem).endswith("max_steps: a budget is required, never defaulted: write max_steps or epochs")


@pytest.mark.parametrize("url", ["s3://b/c", "file:///c", "https://host/c"])
def test_a_cache_is_a_folder_on_this_machine(
    write: Write, refuse: Refuse, without_key: Callable[[str], str], url: str
) -> None:
    dataset = f"dataset: {{parquet_paths: [s3://b/data/*.parquet], cache: {url}}}\n"
    (problem,) = refuse(write(dataset + without_key("dataset"), good=False))
    assert (problem.path, problem.line) == ("dataset.cache", 1)
    assert problem.message == f"expected a folder on this machine, found {url!r}"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("config_version", "2", "expected 1, the only version there is, found 2"),
        ("config_version", "1.0", "found 1.0"),
        ("config_version", "true", "found true"),
        ("config_version", "'1'", "found '1'"),
        ("trainer", "../x.py:T", "expected the name of an entry point, or module:Class, found '../x.py:T'"),
        ("trainer", "a:b:c", "found 'a:b:c'"),
        ("trainer", "''", "found ''"),
        ("trainer", "null", "expected text, found null"),
        ("dataset", "null", "expected a mapping (key: value), found null"),
        ("dataset", "data.parquet", "expected a mapping (key: value), found 'data.parquet'"),
        ("dataset", "{}", "expected parquet_paths or manifest, found neither"),
        ("seed", "-1", "expected at least 0, found -1"),
        ("seed", "9223372036854775808", "expected at most 9223372036854775807"),
        ("seed", "9" * 5000, "expected a whole number, found inf"),
        ("device", "'cuda: 0'", "expected a device such as cpu, cuda or cuda:1, found 'cuda: 0'"),
        ("device", "0", "expected text, found 0"),
        ("precision", "fp8", "expected none, fp16 or bf16, found 'fp8'"),
        ("precision", "null", "expected none, fp16 or bf16, found null"),
        ("precision", "true", "found true"),
        ("ddp", "'false'", "expected true or false, found 'false'"),
        ("ddp", "0", "expected true or false, found 0"),
        ("max_steps", "0", "expected at least 1, found 0"),
        ("max_steps", "1e-3", "expected a whole number, found 0.001"),
    ],
)
def test_a_wrong_value_of_a_required_key_is_refused(
    write: Write, refuse: Refuse, without_key: Callable[[str], str], key: str, text: str, message: str
) -> None:
    (problem,) = refuse(write(f"{key}: {text}\n" + without_key(key), good=False))
    assert (problem.path, problem.line) == (key, 1)
    assert message in problem.message
    assert_plain(problem)


def test_the_warm_up_is_compared_with_a_budget_in_epochs_where_that_is_known(write: Write, refuse: Refuse) -> None:
    schedule = "schedule: {kind: linear, lr_max: 1, warmup_steps: 20}\n"
    epochs = ["max_steps=null", "epochs=2"]
    load_spec(write(schedule), sets=epochs)
    load_spec(write(schedule), sets=[*epochs, "steps_per_epoch=11"])
    (problem,) = refuse(write(schedule), sets=[*epochs, "steps_per_epoch=10"])
    assert problem.message == "expected fewer than the budget's 20 steps, found 20"


def test_two_learning_rates_must_agree(write: Write, refuse: Refuse) -> None:
    text = "optimizer: {lr: 0.1}\nschedule: {kind: linear, lr_max: 0.2}\n"
    (problem,) = refuse(write(text))
    assert str(problem).endswith(
        "spec.yaml:10: schedule.lr_max: expected optimizer.lr (0.1), found 0.2; keep one of them"
    )
    assert load_spec(write(text), sets=["optimizer.lr=0.2"]).spec.schedule.lr_max == 0.2


def test_all_mistakes_come_out_at_once(write: Write, refuse: Refuse) -> None:
    more = "sead: 1\nthreads: -1\nema: {decay: 2, evaluate: true}\nhyperparams: {a: .nan}\nthreads: 3\nepochs: 3\n"
    problems = refuse(write(more))
    assert [(problem.line, problem.path) for problem in problems] == [
        (8, "max_steps"),
        (9, "sead"),
        (10, "threads"),
        (11, "ema.decay"),
        (11, "ema.evaluate"),
        (12, "hyperparams.a"),
        (13, "threads"),
    ]


def test_very_many_mistakes_are_counted(write: Write, refuse: Refuse) -> None:
    problems = refuse(write("".join(f"key{number}: 1\n" for number in range(1000))))
    assert len(problems) == 101
    assert problems[-1].message == "and 900 more problems"


def test_a_refusal_reads_as_one_line_a_problem(write: Write) -> None:
    path = write("sead: 1\nthreads: -1\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        f"spec error [spec_refused] {path}:9: sead: unknown key; did you mean seed?\n"
        f"spec error [spec_refused] {path}:10: threads: expected at least 0, found -1"
    )
    assert caught.value.exit_status == 2


def test_a_refusal_creates_nothing(write: Write, refuse: Refuse, tmp_path: Path) -> None:
    path = write("sead: 1\nruns_dir: runs\n")
    refuse(path, flags=[Flag("--runs-dir", "runs_dir", tmp_path / "elsewhere")])
    assert list(tmp_path.iterdir()) == [path]
