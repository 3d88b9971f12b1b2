"""The flags of `trn run`: each reaches the plan over `--set` and file, and a bad value is one line that names it."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from support.job import write_job
from trn.doors.cli import main
from trn.doors.flags import GROUPS, KNOBS, Knob
from trn.errors import PlanRefused, TrnError
from trn.plan import make_plan
from trn.ranks import World
from trn.records import canonical_json, new_run_id
from trn.runner.__main__ import parse
from trn.runner.start import _read_request
from trn.spec import LoadedSpec

Capture = pytest.CaptureFixture[str]

REFUSED = object()
"""The plan refuses the key, since the job's trainer cannot do it: then it came to the plan."""
FILE = Path(__file__).resolve()
"""Any file."""


class Case(NamedTuple):
    flag: list[str]
    value: object
    by_set: str
    """Another value, with `--set`."""
    by_file: object
    """And a third one, in the file."""
    place: object
    """Where it stands in the plan, or REFUSED."""
    planned: object = None
    """As what, if not as `value`."""


CASES = {
    "--max-steps": Case(["30"], 30, "31", 32, "budget.max_steps"),
    "--epochs": Case(["2"], 2, "3", 4, "budget.max_steps", 2 * 40),
    "--steps-per-epoch": Case(["5"], 5, "6", 7, "budget.steps_per_epoch"),
    "--batch-size": Case(["16"], 16, "4", 2, "dataset.batch_size"),
    "--grad-accum": Case(["4"], 4, "2", 1, "optimizer.accumulate"),
    "--readahead": Case(["0"], 0, "1", 3, "dataset.readahead"),
    "--shuffle": Case([], True, "false", False, "dataset.shuffle"),
    "--device": Case(["cpu"], "cpu", "mps", "cuda", "device"),
    "--amp": Case(["bf16"], "bf16", "none", "fp16", "precision"),
    "--ddp": Case([], True, "false", False, "ddp"),
    "--seed": Case(["0"], 0, "1", 2, "seed"),
    "--deterministic": Case([], True, "warn", False, "deterministic"),
    "--torch-compile": Case([], True, "false", False, "compile.backend", "inductor"),
    "--torch-compile-backend": Case(["eager", "--torch-compile"], "eager", "aot_eager", "inductor", "compile.backend"),
    "--torch-compile-mode": Case(
        ["max-autotune", "--torch-compile"], "max-autotune", "default", "reduce-overhead", "compile.mode"
    ),
    "--torch-compile-strict": Case(["--torch-compile"], True, "false", False, "compile.strict"),
    "--optimizer": Case(["sgd"], "sgd", "adam", "adamw", "optimizer.name"),
    "--lr": Case(["2e-2"], 0.02, "0.3", 0.4, "schedule.lr_max"),
    "--min-lr": Case(["1e-5"], 1e-5, "0.001", 0.0, "schedule.lr_min"),
    "--schedule": Case(["linear"], "linear", "constant", "warmup_cosine", "schedule.kind"),
    "--warmup-steps": Case(["3"], 3, "4", 5, "schedule.warmup_steps"),
    "--weight-decay": Case(["0"], 0, "0.5", 0.25, "optimizer.arguments.weight_decay"),
    "--momentum": Case(["0.9", "--optimizer", "sgd"], 0.9, "0.5", 0.25, "optimizer.arguments.momentum"),
    "--nesterov": Case(
        ["--momentum", "0.9", "--optimizer", "sgd"], True, "false", False, "optimizer.arguments.nesterov"
    ),
    "--clip-grad-norm": Case(["0.5"], 0.5, "2", 3.0, "clip_grad_norm"),
    "--weights": Case([str(FILE)], str(FILE), str(FILE.parent), "else.pt", "weights.path"),
    "--allow-partial": Case(["--weights", str(FILE)], True, "false", False, "weights.allow_partial"),
    "--use-ema": Case([], True, "false", False, "ema.decay", 0.999),
    "--ema-decay": Case(["0.5", "--use-ema"], 0.5, "0.6", 0.7, "ema.decay"),
    "--ema-eval": Case(["--use-ema"], True, "false", False, "ema.evaluate"),
    "--stop-on-non-finite-loss": Case([], "stop", "skip", "skip", "guard.policy"),
    "--non-finite-max-skips": Case(["5"], 5, "6", 7, "guard.max_skips"),
    "--non-finite-lr-decay": Case(["0.9"], 0.9, "0.8", 0.7, "guard.lr_decay"),
    "--early-stop-patience": Case(["0"], 0, "1", 2, "gates.patience"),
    "--early-stop-min-delta": Case(["0.1"], 0.1, "0.2", 0.3, "gates.min_delta"),
    "--target-val-loss": Case(["2.2"], 2.2, "2.3", 2.4, "gates.target_val_loss"),
    "--regime": Case(["finetune"], "finetune", "from_scratch", "from_scratch", "gates.regime"),
    "--max-runtime-seconds": Case(["9"], 9, "8", 7, "max_runtime_s"),
    "--val-every": Case(["3"], 3, "4", 5, "validation.every_epochs"),
    "--val-batch-size": Case(["5"], 5, "6", 7, "validation.batch_size"),
    "--val-every-steps": Case(["7"], 7, "8", 9, "validation.every_steps"),
    "--checkpoint-every": Case(["7"], 7, "8", 9, "checkpoint.every_steps"),
    "--save-delay-steps": Case(["7"], 7, "8", 9, "checkpoint.save_delay_steps"),
    "--best-metric": Case(["map50_95"], "map50_95", "val_map", "recall", "checkpoint.best_metric"),
    "--best-mode": Case(["max"], "max", "min", "min", "checkpoint.best_mode"),
    "--metric-every": Case(["7"], 7, "8", 9, "metric_every"),
    "--sample-every": Case(["7"], 7, "8", 9, "sample_every"),
    "--events": Case(
        ["file:/one", "--events", "-"], ("file:/one", "-"), "[file:/two]", ["file:/three"], "events", ["file:/one", "-"]
    ),
    "--export-onnx": Case([], True, "false", False, REFUSED),
    "--onnx-opset": Case(["20"], 20, "21", 22, "export.opset"),
    "--parity-policy": Case(["warn"], "warn", "fail", "fail", "export.parity_policy"),
    "--parity-atol": Case(["0.01"], 0.01, "0.02", 0.03, "export.atol"),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real job, to be planned only."""
    return write_job(tmp_path_factory.mktemp("flags"), max_steps=60)


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def with_value(job: Path, key: str, value: object) -> Path:
    """The job's spec with another value of one key, as another file beside it."""
    document = YAML(typ="safe").load(job)
    *sections, last = key.split(".")
    section = document
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    if key == "weights.allow_partial":
        section["path"] = str(FILE)
    path = job.with_name(f"spec-{key}.json")
    path.write_bytes(canonical_json(document))
    return path


def child_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> LoadedSpec:
    """The spec that the child of `trn run ... --dry-run` reads, which is not started."""
    started: list[list[str]] = []

    def start(program: str, argv: list[str]) -> None:
        started.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", start)
    assert main(["run", *arguments, "--dry-run"]) == 0
    (argv,) = started
    return _read_request(parse(argv[argv.index("trn.runner") + 1 :])).loaded


def at(value: Any, key: str) -> Any:
    """The value at a dotted key, of objects and of mappings."""
    return reduce(
        lambda part, name: part[name] if isinstance(part, dict) else getattr(part, name), key.split("."), value
    )


def planned(loaded: LoadedSpec, runs_dir: Path) -> Any:
    return make_plan(loaded, run_id=new_run_id(), runs_dir=runs_dir, world=World(0, 0, 1))[0]


def test_the_cases_are_the_table() -> None:
    assert list(CASES) == [knob.name for knob in KNOBS]
    assert len({knob.key for knob in KNOBS}) == len(KNOBS)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_flag_reaches_the_plan_over_set_and_file(
    knob: Knob, job: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[knob.name]
    spec = with_value(job, knob.key, case.by_file)
    loaded = child_of(monkeypatch, "--config", str(spec), knob.name, *case.flag, "--set", f"{knob.key}={case.by_set}")
    assert at(loaded.spec, knob.key) == case.value
    if case.place is REFUSED:
        with pytest.raises(PlanRefused) as caught:
            planned(loaded, runs_dir)
        assert caught.value.where == knob.key
    else:
        assert isinstance(case.place, str)
        assert at(planned(loaded, runs_dir), case.place) == (case.value if case.planned is None else case.planned)
    assert not runs_dir.exists()


@pytest.mark.parametrize("knob", [knob for knob in KNOBS if knob.is_switch], ids=lambda knob: knob.name)
def test_a_switch_can_be_turned_off(knob: Knob, job: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_value(job, knob.key, knob.on)
    off = f"--no-{knob.name.removeprefix('--')}"
    assert at(child_of(monkeypatch, "--config", str(spec), off).spec, knob.key) == knob.off


_ANY_TEXT = ("weights.path", "checkpoint.best.metric")
_FROM_1 = ("--max-steps", "--epochs", "--batch-size", "--grad-accum", "--lr")


def bad_values(knob: Knob) -> list[str]:
    if knob.is_number:
        return ["x", "-1", "true", "null", "", "[1]", ".nan", "1e999", *(["0"] if knob.name in _FROM_1 else ())]
    return [""] if knob.key in _ANY_TEXT else ["Not so!", ""]


@pytest.mark.parametrize(
    ("knob", "value"),
    [(knob, value) for knob in KNOBS if not knob.is_switch for value in bad_values(knob)],
    ids=lambda part: part.name if isinstance(part, Knob) else repr(part),
)
def test_a_bad_value_is_one_line_that_names_the_flag(
    knob: Knob, value: str, job: Path, runs_dir: Path, capsys: Capture
) -> None:
    before = sorted(job.parent.iterdir())
    assert main(["run", "--config", str(job), knob.name, value]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    place = f"{knob.key}[0]" if knob.is_list else knob.key
    assert captured.err.startswith(f"spec error [spec_refused] {knob.name}: {place}: expected ")
    assert not runs_dir.exists()
    assert sorted(job.parent.iterdir()) == before


def test_all_bad_flags_are_told_at_once_with_the_rules_between_them(job: Path, capsys: Capture) -> None:
    assert main(["run", "--config", str(job), "--max-steps", "50", "--epochs", "2", "--lr", "0", "--amp", "bf61"]) == 2
    amp, lr, steps = sorted(capsys.readouterr().err.splitlines())
    assert "--amp: precision: expected none, fp16 or bf16 (did you mean bf16?), found 'bf61'" in amp
    assert "--lr: optimizer.lr: expected more than 0, found 0" in lr
    assert "--max-steps: max_steps: expected one budget, found max_steps and epochs" in steps


def test_the_contract_can_be_asked_for_and_always_holds(
    job: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ("--config", str(job), "--run-id", "demo")
    assert child_of(monkeypatch, *usual, "--run-contract").spec == child_of(monkeypatch, *usual).spec


def test_the_child_is_told_of_flags_as_strict_json() -> None:
    command = ["--job-id", "j", "--config", "c", "--flag"]
    assert parse([*command, '["--lr","optimizer.lr",0.5]']).flags == [["--lr", "optimizer.lr", 0.5]]
    for torn in ("x", "{}", '["--lr"]', '["--lr", 1, 2]', '["--lr", "optimizer.lr", NaN]'):
        with pytest.raises((SystemExit, TrnError)):
            parse([*command, torn])


def test_help_has_every_flag_in_its_group_and_fits_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for title, knobs in GROUPS.items():
        group = text.split(f"\n{title}:\n")[1].split("\n\n")[0]
        for knob in knobs:
            shown = knob.name.replace("--", "--[no-]", 1) if knob.is_switch else knob.name
            assert f"  {shown}" in group


def test_a_shell_is_offered_the_words_of_a_flag(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TRN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "trn run --regime fi")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert main([]) == 0
    assert capsys.readouterr().out == "plain,finetune\n"


def test_the_page_has_each_flag_with_its_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for knob in KNOBS:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{knob.name}`"))
        assert line.endswith(f"| `{knob.key}` |")
        assert knob.takes.replace("|", "\\|") in line
        assert ("`--no-" in line) is knob.is_switch
