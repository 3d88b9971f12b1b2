"""An evaluated checkpoint gives the run's own numbers to the bit, other rows give others, and a record tells of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest

from support.compare import lines
from support.door import until
from support.forkserver import ForkServer
from support.job import command, write_job, write_table
from support.reopening import contents
from trn.doors.cli import trn
from trn.evaluate import __main__ as evaluate_program
from trn.evaluate.__main__ import main
from trn.export import __main__ as export_program
from trn.feed import write_manifest
from trn.files import sha256_file
from trn.provenance.evaluation_record import evaluation_problems
from trn.records import from_json, pretty_json, read_json
from trn.verify import verify_run

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def evaluated(run_dir: Path, capsys: Capture, *more: str) -> Any:
    """The document of an evaluation that ends well."""
    capsys.readouterr()
    code = main([str(run_dir), *more, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def refused(run_dir: Path, capsys: Capture, *more: str) -> tuple[int, str]:
    """Exit status and message of one that is refused, with nothing left behind."""
    before = contents(run_dir)
    capsys.readouterr()
    code = main([str(run_dir), *more])
    said = capsys.readouterr()
    assert said.out == ""
    assert contents(run_dir) == before
    return code, said.err


def problems(run_dir: Path) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in verify_run(run_dir) if one.problem is not None]


# the same numbers


def test_every_validation_of_the_run_comes_out_again_to_the_bit(run_dir: Path, capsys: Capture) -> None:
    found = lines(run_dir, "val_metrics.jsonl")
    assert [line["step"] for line in found] == [25, 40, 50, 60]
    for line in found:
        document = evaluated(run_dir, capsys, "--checkpoint", str(line["step"]))
        own = {name: value for name, value in line.items() if name not in ("step", "epoch")}
        assert len(own) == 3
        assert document["metrics"] == document["run_metrics"] == own
        assert document["is_equal"] is True
        assert document["checkpoint"]["epoch"] == line["epoch"]


def test_with_ema_it_is_the_average_where_the_plan_says_so(server: ForkServer, tmp_path: Path, capsys: Capture) -> None:
    spec = write_job(tmp_path / "job", max_steps=30)
    text = spec.read_text().replace("keep: 2", "keep: 9")
    found = []
    for evaluate in ("true", "false"):
        spec.write_text(f"{text}ema: {{enabled: true, decay: 0.9, evaluate: {evaluate}}}\n")
        assert server.run(command(spec, tmp_path, evaluate), tmp_path / "log") == 0, (tmp_path / "log").read_text()
        found.append(evaluated(tmp_path / evaluate, capsys, "--checkpoint", "25"))
        assert found[-1]["is_equal"] is True
    averaged, plain = (document["metrics"]["val_loss"] for document in found)
    assert averaged != plain


def test_a_step_without_a_validation_has_nothing_to_be_compared_with(run_dir: Path, capsys: Capture) -> None:
    document = evaluated(run_dir, capsys, "--checkpoint", "30")
    assert (document["run_metrics"], document["is_equal"]) == (None, None)
    assert document["checkpoint"]["step"] == 30


# what is said and kept


def test_metrics_are_printed_a_line_each_and_a_record_is_kept(run_dir: Path, capsys: Capture) -> None:
    best = read_json(run_dir / "reports/outcome.json")["best"]
    before = contents(run_dir)
    assert main([str(run_dir)]) == 0
    said = capsys.readouterr()
    printed = dict(line.split() for line in said.out.splitlines())
    assert float(printed["val_loss"]) == best["value"]
    assert list(printed) == ["val_loss", "val_rows", "val_mae"]
    assert "the same numbers as the run's own at this step, to the bit" in said.err
    (path,) = (run_dir / "reports/evaluations").glob("*.json")
    record = read_json(path)
    assert f"recorded in reports/evaluations/{path.name}" in said.err
    assert {name: digest for name, digest in contents(run_dir).items() if "evaluations/" not in name} == before
    weights = run_dir / "checkpoints" / record["checkpoint"]["file"]
    assert record["checkpoint"]["sha256"] == sha256_file(weights)
    assert record["checkpoint"]["step"] == best["step"]
    assert record["data"]["source"] == "plan"
    assert record["environment"]["run_metadata"]["run_name"] == "run"
    assert "torch" in record["versions"]
    assert problems(run_dir) == []


def test_what_is_wrong_with_a_record_is_found_by_verify(run_dir: Path, capsys: Capture) -> None:
    name = evaluated(run_dir, capsys)["record"]
    path = run_dir / name
    record = read_json(path)
    assert evaluation_problems(path.read_bytes()) == []
    wrong: dict[str, Any] = {
        "metrics": {"val_loss": "low"},
        "is_equal": False,
        "schema_version": 2,
        "checkpoint": {**record["checkpoint"], "sha256": "no"},
        "more": 1,
        "run_id": "another",
    }
    for key, value in wrong.items():
        path.write_bytes(pretty_json({**record, key: value}))
        assert [one for one in problems(run_dir) if name in one], key
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": NaN, "s": '))
    assert [one for one in problems(run_dir) if "strict JSON" in one]
    path.write_bytes(pretty_json(record))
    assert problems(run_dir) == []
    odd = path.with_name("odd.json")
    odd.mkdir()
    assert [one for one in problems(run_dir) if "odd.json: it is no file" in one]
    odd.rmdir()
    with open(odd, "wb") as stream:
        stream.truncate(1 << 40)  # takes no room, and nobody may read it
    assert [one for one in problems(run_dir) if "odd.json: it is no file of at most" in one]
    odd.unlink()
    path.rename(path.with_name("mine.json"))
    assert [one for one in problems(run_dir) if "another run, plan or checkpoint" in one]


def test_what_a_killed_evaluation_left_goes_with_the_next_one_that_writes(run_dir: Path, capsys: Capture) -> None:
    folder = run_dir / "reports/evaluations"
    folder.mkdir()
    left = folder / ".20261122T092333.169646Z-step-00000060.json.tmp-1-0"
    left.write_text('{"schema_ver')
    assert problems(run_dir) == []
    name = evaluated(run_dir, capsys)["record"]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", Path(name).name]
    assert problems(run_dir) == []


def test_a_reader_that_is_gone_ends_nothing(run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main([str(run_dir)]) == 0
    monkeypatch.undo()
    assert "Error" not in capsys.readouterr().err
    assert len(list((run_dir / "reports/evaluations").glob("*.json"))) == 1


def test_a_record_that_cannot_be_written_does_not_hide_the_numbers(run_dir: Path, capsys: Capture) -> None:
    (run_dir / "reports/evaluations").write_text("in the way")
    assert main([str(run_dir)]) == 74
    said = capsys.readouterr()
    assert said.out.startswith("val_loss ")
    assert "storage error [io_error]" in said.err


# rows


def test_rows_of_a_table_a_folder_a_manifest_and_a_spec(
    trained: Path, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "rows/other.parquet"
    other.parent.mkdir()
    write_table(other, 40, seed=9)
    write_manifest([str(other)], tmp_path / "dataset.json")
    spec = shutil.copy(trained / "job/spec.yaml", tmp_path / "other.yaml")
    Path(spec).write_text(Path(spec).read_text().replace("[validation.parquet]", "[rows/other.parquet]"))
    by_table = evaluated(run_dir, capsys, "--data", str(other))
    assert by_table["data"]["source"] == "given"
    assert by_table["data"]["rows"] == 40
    assert by_table["data"]["files"] == [str(other)]
    assert by_table["run_metrics"] is None
    own = evaluated(run_dir, capsys)
    assert by_table["metrics"]["val_loss"] != own["metrics"]["val_loss"]
    for name in (str(other.parent), str(other.parent / "*.parquet"), str(tmp_path / "dataset.json"), str(spec)):
        assert evaluated(run_dir, capsys, "--data", name)["metrics"] == by_table["metrics"], name
    both = evaluated(run_dir, capsys, "--data", str(other), "--data", str(trained / "job/validation.parquet"))
    assert both["data"]["rows"] == 101
    assert problems(run_dir) == []


def test_the_runs_own_rows_named_by_path_are_compared_too(trained: Path, run_dir: Path, capsys: Capture) -> None:
    document = evaluated(run_dir, capsys, "--data", str(trained / "job/validation.parquet"))
    assert (document["data"]["source"], document["is_equal"]) == ("given", True)


def test_batches_can_be_fewer_or_larger(run_dir: Path, capsys: Capture) -> None:
    whole = evaluated(run_dir, capsys)
    some = evaluated(run_dir, capsys, "--max-batches", "2")
    assert some["is_equal"] is None
    assert some["metrics"]["val_loss"] != whole["metrics"]["val_loss"]
    large = evaluated(run_dir, capsys, "--batch-size", "61")
    assert (large["data"]["batch_size"], large["is_equal"]) == (61, None)
    # other sums in float32: near, not the same
    assert large["metrics"]["val_loss"] == pytest.approx(whole["metrics"]["val_loss"], rel=0.02)
    for wrong in (["--batch-size", "0"], ["--max-batches", "-1"], ["--max-batches", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main([str(run_dir), *wrong])


def test_changed_or_missing_validation_data_are_refused_with_what_to_do(
    server: ForkServer, tmp_path: Path, capsys: Capture
) -> None:
    spec = write_job(tmp_path / "job", max_steps=25)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0
    write_table(tmp_path / "job/validation.parquet", 61, seed=4)
    code, said = refused(tmp_path / "run", capsys)
    assert code == 65
    assert "has changed" in said
    assert "--data" in said
    (tmp_path / "job/validation.parquet").unlink()
    code, said = refused(tmp_path / "run", capsys)
    assert code == 65
    assert "--data" in said


def test_rows_that_do_not_fit_are_refused(trained: Path, run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    table = pq.read_table(trained / "job/validation.parquet")
    pq.write_table(table.rename_columns(["x", "z"]), tmp_path / "named.parquet")
    pq.write_table(table.set_column(1, "y", table["y"].cast("float64")), tmp_path / "typed.parquet")
    for name, told in (("named", 'no column "y"'), ("typed", "the run was trained with float"), ("gone", "not exist")):
        code, said = refused(run_dir, capsys, "--data", str(tmp_path / f"{name}.parquet"))
        assert code == 65, said
        assert told in said
    (tmp_path / "spec.yaml").write_text("config_version: 1\n")
    assert refused(run_dir, capsys, "--data", str(tmp_path / "spec.yaml"))[0] == 2
    (tmp_path / "dataset.json").write_text("{}")
    assert refused(run_dir, capsys, "--data", str(tmp_path / "dataset.json"))[0] == 65


# trainers that cannot


ODD = """
import os

from noisy import Noisy
from trn import TorchTrainer


class Odd(Noisy):
    def configure(self, ctx):
        ctx.report("compile_fallback", error="no compiler")
        return super().configure(ctx)

    def evaluate(self, batches, state, ctx):
        how = os.environ.get("ODD", "")
        given = dict(super().evaluate(batches, state, ctx))
        if how == "raise":
            raise RuntimeError("no such luck")
        odd = {"nan": {"val_loss": float("nan")}, "none": {}, "list": [1.0], "text": {"val_loss": "low"}}
        return odd.get(how, given)


class Mute(Noisy):
    evaluate = None
"""


def test_what_a_trainer_returns_is_judged_as_in_the_run(
    server: ForkServer, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_job(tmp_path / "job", max_steps=25)
    (tmp_path / "job/odd.py").write_text(ODD)
    spec.write_text(spec.read_text().replace("noisy:Noisy", "odd:Odd"))
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    expected = {
        "nan": (80, "val_loss is nan, expected a finite number"),
        "none": (70, "at least one metric"),
        "list": (70, "expected metrics by name, found list"),
        "text": (70, "found a str"),
        "raise": (70, "no such luck"),
    }
    for how, (code, told) in expected.items():
        monkeypatch.setenv("ODD", how)
        found, said = refused(tmp_path / "run", capsys)
        assert (found, told in said) == (code, True), said
    assert "Traceback" in said  # the trainer's own mistake is shown where it is
    monkeypatch.setenv("ODD", "")
    assert main([str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "trn: compile_fallback: error no compiler\n" in said
    assert "to the bit" in said
    spec.write_text(spec.read_text().replace("odd:Odd", "odd:Mute").replace("validation:", "# validation:"))
    assert server.run(command(spec, tmp_path, "mute"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    code, said = refused(tmp_path / "mute", capsys)
    assert (code, "no validation data" in said) == (2, True)
    data = str(tmp_path / "job/validation.parquet")
    code, said = refused(tmp_path / "mute", capsys, "--data", data)
    assert (code, "has no `evaluate`" in said) == (78, True)


def test_a_run_without_validation_can_be_evaluated_on_rows_that_are_named(
    server: ForkServer, tmp_path: Path, capsys: Capture
) -> None:
    spec = write_job(tmp_path / "job", max_steps=25)
    spec.write_text(spec.read_text().replace("validation:", "# validation:"))
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    document = evaluated(tmp_path / "run", capsys, "--data", str(tmp_path / "job/validation.parquet"))
    assert document["checkpoint"]["step"] == 25  # without a best, the last
    assert set(document["metrics"]) == {"val_loss", "val_rows", "val_mae"}


# checkpoints


def test_a_damaged_checkpoint_is_refused_and_a_run_without_a_good_one_ends_with_91(
    run_dir: Path, capsys: Capture
) -> None:
    path = run_dir / "checkpoints/step-00000030.pt"
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    code, said = refused(run_dir, capsys, "--checkpoint", "30")
    assert (code, "does not hold" in said) == (78, True)
    for other in (run_dir / "checkpoints").glob("*.*"):
        other.unlink()
    assert refused(run_dir, capsys)[0] == 91


def test_a_secret_in_the_command_line_is_not_recorded(
    run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["trn eval", "--token=Zx81kqPw77hhLm20"])
    record = evaluated(run_dir, capsys)
    assert "Zx81kqPw77hhLm20" not in (run_dir / record["record"]).read_text()
    assert from_json((run_dir / record["record"]).read_bytes())["command"]["argv"] == ["trn eval", "--token=***"]


# the command line


@pytest.mark.parametrize(("verb", "parser"), [("eval", evaluate_program._parser), ("export", export_program._parser)])
def test_a_verb_and_its_program_have_the_same_options(verb: str, parser: Any) -> None:
    command = trn.get_command(click.Context(trn), verb)
    assert command is not None
    own = {name: one for one in command.params for name in one.opts if name.startswith("--")}
    theirs = {name: one for one in parser()._actions for name in one.option_strings if name.startswith("--")}
    assert set(own) - {"--runs-dir"} == set(theirs) - {"--help"}
    for name in set(own) & set(theirs):
        choices = getattr(own[name].type, "choices", None)
        if name != "--allow-change":
            assert choices is None or tuple(choices) == tuple(theirs[name].choices), name


# meanwhile


def test_a_run_that_is_training_can_be_evaluated_and_is_not_disturbed(
    server: ForkServer, tmp_path: Path, capsys: Capture
) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000)
    pid = server.start(command(spec, tmp_path, "run"), tmp_path / "log")
    try:
        until(lambda: (tmp_path / "run/checkpoints/best.meta.json").exists())
        for name in ("last", "best", "last"):
            document = evaluated(tmp_path / "run", capsys, "--checkpoint", name)
            assert document["is_equal"] is (True if document["run_metrics"] else None)
        assert not (tmp_path / "run/reports/outcome.json").exists()
        os.kill(pid, signal.SIGTERM)
        assert server.wait(pid) == 75
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    assert problems(tmp_path / "run") == []
    assert len(list((tmp_path / "run/reports/evaluations").glob("*.json"))) == 3
