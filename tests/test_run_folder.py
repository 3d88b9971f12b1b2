"""docs/artifacts.md and `trn schema` against the folder of a real run: every file, every key, every record.

The run has seen all that leaves a file: epochs, a damaged checkpoint, a revision of its plan, a second job, a fork.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support.forkserver import ForkServer
from support.job import command, write_job
from support.reopening import put_back_process
from trn.checkpoint.meta import listed_steps
from trn.doors.cli import main
from trn.doors.schemas import schema_names, schema_of
from trn.doors.schemas_of_events import EVENT_FIELDS
from trn.errors import exit_code
from trn.evaluate.__main__ import main as evaluate
from trn.export.__main__ import main as export
from trn.feed.manifest import write_manifest
from trn.jobs import open_store
from trn.records import JobRow, new_job_id, read_json, read_lines, utc_now
from trn.sinks.__main__ import main as relay
from trn.spec.documents import read_document
from trn.spec.nodes import plain

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "artifacts.md").read_text()
NOT_HERE = {"logs/*", "checkpoints/step-XXXXXXXX.files/*", "exports/hf/*"}
"""What only a trainer writes, and what only a model of the transformers library can be exported to."""
EXPORT = """
    def export(self, batch, state, ctx):
        from trn.trainer.exporting import Export

        return Export(state.model, {"x": batch["x"]}, ("y",), {"x": {0: "rows"}})
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps whose last checkpoint was damaged, taken on to step 80 by a second job, evaluated, exported,
    exported once more without passing, and shown to TensorBoard; beside it a fork."""
    folder = tmp_path_factory.mktemp("artifacts")
    spec, runs, log = write_job(folder / "job", max_steps=60), folder / "runs", folder / "log"
    spec.with_name("base.yaml").write_text("owner: somebody\n")
    spec.write_text("extends: base.yaml\n" + spec.read_text() + "export: {onnx: false}\n")
    trainer = spec.with_name("noisy.py")
    trainer.write_text(trainer.read_text() + EXPORT)
    with ForkServer() as server:
        assert server.run(command(spec, runs, "demo"), log) == 0, log.read_text()
        with open(runs / "demo/checkpoints/step-00000060.pt", "ab") as stream:
            stream.write(b"damage")
        spec.write_text(spec.read_text().replace("max_steps: 60", "max_steps: 80"))
        go_on = command(spec, runs, "demo", "--resume", "--allow-change", "max_steps")
        assert server.run(go_on, log) == 0, log.read_text()
        older = str(listed_steps(runs / "demo/checkpoints")[1])
        fork = ["--job-id", new_job_id(), "--run-dir", str(runs / "demo"), "--run-id", "fork", "--checkpoint", older]
        assert server.run(fork, log) == 0, log.read_text()
    with put_back_process():
        assert evaluate([str(runs / "demo")]) == 0
        assert export([str(runs / "demo"), "--format", "onnx", "--format", "safetensors"]) == 0
        assert export([str(runs / "demo"), "--atol", "1e-30"]) == exit_code("parity_failed")
    assert relay(["--run-dir", str(runs / "demo"), "--to", "tensorboard:"]) == 0
    return runs / "demo"


def rows() -> list[tuple[list[str], str | None]]:
    """The table of files: the patterns of a row, and the name of their schema."""
    found = []
    for line in PAGE.split("## When each file is written")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| `") else []
        if cells:
            found.append((re.findall(r"`([^`]+)`", cells[0]), cells[2].strip("`") or None))
    return found


def is_called(name: str, pattern: str) -> bool:
    """Whether a path in the folder is meant by a pattern of the page."""
    form = re.escape(pattern).replace(r"<job_id>", "@").replace(r"\*", "[^/]*")
    form = re.sub(r"(?<=step\\-)X+", r"\\d{8}", form)
    form = re.sub(r"(?<=epoch\\-)N+", r"\\d{3}", form)
    form = re.sub(r"(?<=plans/)N", r"\\d+", form)
    return re.fullmatch(form.replace("@", r"job-[\w-]+"), name) is not None


def names(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("run_id", ["demo", "fork"])
def test_every_file_of_the_folder_is_on_the_page(run_dir: Path, run_id: str) -> None:
    patterns = [pattern for row, _ in rows() for pattern in row]
    for name in names(run_dir.with_name(run_id)):
        assert [pattern for pattern in patterns if is_called(name, pattern)], f"docs/artifacts.md does not name {name}"


@pytest.mark.slow
def test_everything_on_the_page_is_in_the_folder(run_dir: Path) -> None:
    found = {*names(run_dir), *names(run_dir.with_name("fork"))}
    for pattern in {one for row, _ in rows() for one in row} - NOT_HERE:
        assert any(is_called(name, pattern) for name in found), f"no run has {pattern}"


def sections() -> dict[str, str]:
    """File name -> the part of the docs that says what its keys mean."""
    parts = {part.split("\n")[0].split(":")[0]: part for part in PAGE.split("\n## ")[1:]}
    first_table = (DOCS / "formats/checkpoint.md").read_text().split("|---|---|\n")[1].split("\n\n")[0]
    return parts | {"step-XXXXXXXX.meta.json": first_table}


def explained(title: str) -> set[str]:
    """The keys in the first column of a file's table."""
    told = re.findall(r"^\| (`[^|]*`) \|", sections()[title], re.MULTILINE)
    return {key for cell in told for key in re.findall(r"`(\w+)`", cell)}


FILES = {
    "resolved_config.json": ("plan", "reports/resolved_config.json"),
    "run_meta.json": ("run_meta", "reports/run_meta.json"),
    "run_metadata.json": ("run_metadata", "reports/run_metadata.json"),
    "runtime_env.json": ("runtime_env", "reports/runtime_env.json"),
    "outcome.json": ("outcome", "reports/outcome.json"),
    "forked_from.json": ("forked_from", "reports/forked_from.json"),
    "evaluations/TIME-CHECKPOINT.json": ("evaluation", "reports/evaluations/*.json"),
    "exports": ("export", "exports/*.meta.json"),
    "onnx_parity.json": ("parity", "reports/onnx_parity.json"),
    "epoch-NNN.metadata.json": ("epoch", "checkpoints/epoch-???.metadata.json"),
    "step-XXXXXXXX.meta.json": ("checkpoint", "checkpoints/step-*.meta.json"),
}
"""Title of a table of keys -> its schema, and where the file lies."""


@pytest.mark.parametrize("title", FILES)
def test_every_key_of_a_schema_is_explained_and_no_other_is(title: str) -> None:
    assert explained(title) == set(schema_of(FILES[title][0])["properties"])


@pytest.mark.slow
@pytest.mark.parametrize("title", FILES)
def test_every_key_of_a_file_is_explained_and_no_other_is(run_dir: Path, title: str) -> None:
    found = [path for folder in (run_dir, run_dir.with_name("fork")) for path in folder.glob(FILES[title][1])]
    assert found
    required = set(schema_of(FILES[title][0])["required"])
    for path in found:
        assert required <= set(read_json(path)) <= explained(title), path


def documents(path: Path) -> Iterator[Any]:
    """The records in a file: its object, each of its lines, or the value of a YAML document."""
    if path.suffix == ".jsonl":
        yield from read_lines(path)
    elif path.suffix == ".json":
        yield read_json(path)
    else:
        root = read_document(path.read_text(), path.suffix, path.name).root
        yield None if root is None else plain(root)


def records(run_dir: Path) -> dict[str, list[Any]]:
    """Schema name -> all that this run and its fork have of it."""
    found: dict[str, list[Any]] = {}
    for folder in (run_dir, run_dir.with_name("fork")):
        for row, schema in rows():
            for name in names(folder):
                if schema and any(is_called(name, pattern) for pattern in row):
                    found.setdefault(schema, []).extend(documents(folder / name))
    return found


def listed(capsys: pytest.CaptureFixture[str], runs_dir: Path) -> Any:
    capsys.readouterr()
    assert main(["list", "--json", "--runs-dir", str(runs_dir)]) == 0
    return json.loads(capsys.readouterr().out)


def validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(schema_of(schema), format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.slow
def test_every_record_of_a_real_run_keeps_its_schema(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(run_dir)
    found["job"] = listed(capsys, run_dir.parent)  # no job is known yet: the run alone
    row = JobRow(new_job_id(), "demo", str(run_dir), "starting", "spec.yaml", utc_now())
    with open_store(run_dir.parent) as store:
        store.add(row)
    found["job"] += listed(capsys, run_dir.parent)
    write_manifest([str(run_dir.parents[1] / "job/*.parquet")], run_dir.parents[1] / "dataset.json")
    found["dataset"] = [read_json(run_dir.parents[1] / "dataset.json")]
    # these two are of a door and of a worker: tests/jobs/test_log.py, tests/launch/test_contract.py
    assert set(found) | {"job_log", "contract"} == set(schema_names())
    for schema, written in found.items():
        assert written, schema
        check = validator(schema)
        for one in written:
            assert [f"{error.json_path}: {error.message}" for error in check.iter_errors(one)] == [], schema


@pytest.mark.slow
@pytest.mark.parametrize("schema", sorted(set(schema_names()) - {"contract", "dataset", "job", "job_log", "spec"}))
def test_a_record_that_lacks_a_key_or_has_a_wrong_one_breaks_its_schema(run_dir: Path, schema: str) -> None:
    value, check, document = schema_of(schema), validator(schema), records(run_dir)[schema][0]
    assert check.is_valid(document)
    for key in value["required"]:
        assert not check.is_valid({name: one for name, one in document.items() if name != key}), key
    for key in value["properties"]:
        assert not check.is_valid({**document, key: [[None]]}), key
    if schema != "event":  # the other open ones take numbers only
        assert not check.is_valid({**document, "surprise": "text"})


@pytest.mark.slow
def test_an_event_that_lacks_a_field_of_its_kind_breaks_the_schema(run_dir: Path) -> None:
    check = validator("event")
    tried = {event["event"]: event for event in records(run_dir)["event"]}
    assert {"resumed", "metrics_cut", "checkpoint_rejected", "epoch", "completed"} <= set(tried)
    for kind, event in tried.items():
        assert not check.is_valid({**event, "event": "surprise"})
        for field in EVENT_FIELDS[kind]:
            assert not check.is_valid({name: one for name, one in event.items() if name != field}), (kind, field)
