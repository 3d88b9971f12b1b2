"""No code in data: what train, resume and verify do, as Python's own audit hook saw it.

A module's import compiles and runs code: torch alone does so four thousand times. Apart from imports, and from the
annotations of classes, nothing does, neither before the journal says `started` nor after it; and no import comes from
the folder of a run.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from support.audited import STARTED, audited
from support.job import command, write_job
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.files import sha256_file

pytestmark = pytest.mark.slow

Events = Sequence[dict[str, Any]]

CODE = frozenset({"exec", "compile", "code.__new__", "function.__new__", "marshal.loads"})
HARMLESS = frozenset({"ctypes.dlopen", "os.putenv", STARTED})
"""Watched, and no way for data to run: torch loads its libraries, numpy and the runner set variables."""


def told(events: Events) -> list[str]:
    return [f"{one['phase']} {one['event']} {one['detail']} by {one['by']}" for one in events]


def assert_no_code_in_data(events: Events, runs_dir: Path) -> None:
    """No unpickling, no program but git, no connection, no code but that of imported modules."""
    rest = []
    for one in events:
        event, detail = one["event"], one["detail"]
        if event in CODE:
            is_foreign = detail.startswith(str(runs_dir))
            # typing resolves the annotations of a class, such as `int | None` of a trainer's Params
            is_annotation = one["by"] == "typing" and detail.startswith("<string>")
            # the sources of a trainer are read for what they import: parsed, never compiled
            is_parsed = one["by"] == "ast" and event == "compile"
            if is_foreign or not (one["is_import"] or is_annotation or is_parsed):
                rest.append(one)
        elif event == "subprocess.Popen":
            if Path(detail.split()[0]).name != "git":
                rest.append(one)
        elif event not in HARMLESS:
            rest.append(one)
    assert told(rest) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The spec and the folder of a run that was trained, validated, sampled and saved under the hook."""
    folder = tmp_path_factory.mktemp("audited")
    spec, runs_dir = write_job(folder / "job", max_steps=60), folder / "runs"
    code, said, events = audited(folder / "report", "trn.runner", *command(spec, runs_dir, "run"))
    assert code == 0, said
    assert {"before", "after"} == {one["phase"] for one in events}
    assert any(one["event"] == "exec" and one["detail"].endswith("noisy.py") for one in events), "the hook sees"
    assert_no_code_in_data(events, runs_dir)
    return spec, runs_dir / "run"


def test_training_runs_no_code_but_that_of_modules(trained: tuple[Path, Path]) -> None:
    assert (trained[1] / "reports/outcome.json").is_file()


def test_a_resume_runs_no_code_but_that_of_modules(trained: tuple[Path, Path], tmp_path: Path) -> None:
    spec, run_dir = trained
    longer = ("--resume", "--allow-change", "max_steps", "--set", "max_steps=90")
    code, said, events = audited(tmp_path / "report", "trn.runner", *command(spec, run_dir.parent, "run", *longer))
    assert code == 0, said
    assert json.loads((run_dir / "reports/outcome.json").read_text())["step"] == 90
    assert_no_code_in_data(events, run_dir.parent)


def test_verifying_runs_no_code_but_that_of_modules_and_starts_nothing(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    code, said, events = audited(tmp_path / "report", "trn.verify", str(trained[1]), "--json")
    assert code == 0, said
    assert_no_code_in_data(events, trained[1].parent)
    assert [one for one in events if one["event"] == "subprocess.Popen"] == []


def test_evaluating_runs_no_code_but_that_of_modules(trained: tuple[Path, Path], tmp_path: Path) -> None:
    code, said, events = audited(tmp_path / "report", "trn.evaluate", str(trained[1]), "--json")
    assert code == 0, said
    assert_no_code_in_data(events, trained[1].parent)


LM = """
config_version: 1
trainer: lm
hyperparams: {width: 16, depth: 1, heads: 2, vocab: 400, context: 32, sample_tokens: 5}
dataset: {parquet_paths: [tokens.parquet], columns: [tokens], batch_size: 4}
validation: {parquet_paths: [tokens.parquet], every_steps: 3, max_batches: 2}
seed: 1
device: cpu
precision: none
ddp: false
max_steps: 6
sample_every: 3
threads: 1
export: {onnx: false} # torch's tracer writes code of the model's own graph and runs it
"""


def test_the_recipe_with_transformers_behind_it_does_not_either(tmp_path: Path) -> None:
    tokens = pa.FixedSizeListArray.from_arrays(pa.array([n % 400 for n in range(33 * 64)], pa.int32()), 33)
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "tokens.parquet")
    spec = tmp_path / "spec.yaml"
    spec.write_text(LM)
    code, said, events = audited(tmp_path / "report", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert code == 0, said
    assert any("/transformers/" in one["detail"] for one in events)
    assert_no_code_in_data(events, tmp_path / "runs")


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_the_hook_sees_what_a_careless_reader_would_do(tmp_path: Path) -> None:
    """The test of the tests: the same pickle, loaded without care, is seen and makes its file."""
    marker, bait = tmp_path / "marker", tmp_path / "bait"
    bait.mkdir()
    (bait / "evil.pkl").write_bytes(pickle.dumps(Evil(marker)))
    (bait / "careless.py").write_text(
        "import pickle\nfrom pathlib import Path\n"
        "class Careless: pass\n"
        "pickle.loads((Path(__file__).parent / 'evil.pkl').read_bytes())\n"
    )
    spec = write_job(tmp_path / "job", max_steps=20)
    (spec.parent / "noisy.py").write_text((bait / "careless.py").read_text())
    (spec.parent / "evil.pkl").write_bytes((bait / "evil.pkl").read_bytes())
    _, _, events = audited(tmp_path / "report", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert marker.exists()
    assert {"pickle.find_class", "os.system"} <= {one["event"] for one in events}
    with pytest.raises(AssertionError):
        assert_no_code_in_data(events, tmp_path / "runs")


def plant_checkpoint(run_dir: Path, step: int, payload: bytes | dict[str, Any]) -> None:
    """Another content in a checkpoint, and a meta that vouches for it."""
    folder = run_dir / "checkpoints"
    path = folder / checkpoint_name(step)
    path.unlink()  # it has other names
    if isinstance(payload, bytes):
        path.write_bytes(payload)
    else:
        torch.save(payload, path)
    meta = CheckpointMeta.read(folder / meta_name(step))
    meta = replace(meta, sha256=sha256_file(path), size_bytes=path.stat().st_size)
    (folder / meta_name(step)).unlink()
    (folder / meta_name(step)).write_bytes(meta.to_bytes())


@pytest.mark.parametrize("kind", ["a pickle", "an object in a torch file", "a module in a torch file"])
def test_a_checkpoint_with_code_in_it_is_refused_and_runs_none(tmp_path: Path, kind: str) -> None:
    spec, run_dir, marker = write_job(tmp_path / "job", max_steps=20), tmp_path / "runs/run", tmp_path / "marker"
    code, said, _ = audited(tmp_path / "report", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert code == 0, said
    evil = Evil(marker)
    module: Any = torch.nn.Linear(1, 1)
    content = {
        "a pickle": pickle.dumps(evil),
        "an object in a torch file": {"trainer": {"model": evil}},
        "a module in a torch file": {"trainer": {"model": module}},
    }
    plant_checkpoint(run_dir, 20, content[kind])  # type: ignore[arg-type]
    (run_dir / "reports/outcome.json").unlink()
    code, said, events = audited(tmp_path / "again", "trn.runner", "--job-id", "job-x", "--run-dir", str(run_dir))
    assert code == 78, said
    assert "resume error [resume_refused] at checkpoints/step-00000020.pt: it cannot be loaded: " in said
    assert not marker.exists()
    assert_no_code_in_data(events, run_dir.parent)
    code, said, events = audited(tmp_path / "verified", "trn.verify", str(run_dir))
    assert not marker.exists()
    assert_no_code_in_data(events, run_dir.parent)


def evil_parquet(path: Path, marker: Path) -> None:
    """A column whose Arrow type is a pickle, and pandas metadata with a name to import."""
    pickled = pickle.dumps(Evil(marker))
    field = pa.field("x", pa.list_(pa.float32(), 8)).with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    )
    schema = pa.schema([field, pa.field("y", pa.float32())], metadata={b"pandas": b'{"pandas_version": "__import__"}'})
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 8 * 40, pa.float32()), 8)
    pq.write_table(pa.table([x, pa.array([0.0] * 40, pa.float32())], schema=schema), path)


def test_a_table_with_code_in_its_schema_is_refused_and_runs_none(tmp_path: Path) -> None:
    spec, marker = write_job(tmp_path / "job", max_steps=20), tmp_path / "marker"
    evil_parquet(spec.parent / "train-0.parquet", marker)
    code, said, events = audited(tmp_path / "report", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert code == 65, said
    assert "the Arrow extension type 'arrow.py_extension_type', which is not read" in said
    assert not marker.exists()
    assert_no_code_in_data(events, tmp_path / "runs")


def test_a_manifest_and_a_spec_with_code_in_them_run_none(tmp_path: Path) -> None:
    spec, marker = write_job(tmp_path / "job", max_steps=20), tmp_path / "marker"
    evil = base64.b64encode(pickle.dumps(Evil(marker))).decode()
    text = spec.read_text().replace("parquet_paths: [train-0.parquet, train-1.parquet]", "manifest: evil.json", 1)
    spec.write_text(text + f"owner: {evil[:200]}\n")
    (spec.parent / "evil.json").write_text(json.dumps({"py/reduce": ["os.system", f"touch {marker}"], "data": evil}))
    code, said, events = audited(tmp_path / "report", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert code == 65, said
    assert_no_code_in_data(events, tmp_path / "runs")
    spec.write_text(spec.read_text() + f"release_ref: !!python/object/apply:os.system ['touch {marker}']\n")
    code, said, events = audited(tmp_path / "again", "trn.runner", *command(spec, tmp_path / "runs", "run"))
    assert code == 2, said
    assert not marker.exists()
    assert_no_code_in_data(events, tmp_path / "runs")
