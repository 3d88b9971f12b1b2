"""--contract: a run by what a worker hands over is the run that reads its parquet itself, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.compare import assert_identical, events, outcome
from support.forkserver import ForkServer
from support.job import command, write_job
from trn.errors import ResumeRefused
from trn.feed import make_cache, open_dataset
from trn.files import Lock
from trn.launch.confined import ConfinedLauncher, Confinement
from trn.launch.contract import CONTRACT_VERSION, TrainerSubprocessContractV1, write_contract
from trn.records import new_job_id, read_json
from trn.runner.start import claim
from trn.spec.documents import read_document
from trn.spec.nodes import plain

pytestmark = pytest.mark.slow
USAGE, DATA_ERROR, REFUSED, OUT_OF_MEMORY = 2, 65, 78, 89


def settled(folder: Path, **changes: Any) -> Path:
    """A job whose data have more columns than its trainer wants; its spec as a JSON document, as a worker writes it."""
    spec = write_job(folder, **changes)
    for path in sorted(folder.glob("train-*.parquet")):
        table = pq.read_table(path)
        more = table.append_column("note", pa.array([f"row {row}" for row in range(table.num_rows)]))
        pq.write_table(more.select(["note", "y", "x"]), path, row_group_size=37)
    root = read_document(spec.read_text(), ".yaml", "spec.yaml").root
    assert root is not None
    path = folder / "job_spec.json"
    path.write_text(json.dumps(plain(root)))
    return path


def decoded(spec: Path, columns: list[str] | None = None) -> Path:
    """The training data as one Arrow file, all columns unless some are named."""
    data = open_dataset([str(path) for path in sorted(spec.parent.glob("train-*.parquet"))], columns=columns)
    return make_cache(data, list(data.columns), spec.parent.parent / "arrow").path


def contract_of(spec: Path, run_id: str, arrow: Path | None) -> TrainerSubprocessContractV1:
    run_dir = spec.parent.parent / run_id
    return TrainerSubprocessContractV1(
        contract_version=CONTRACT_VERSION,
        trainer_plugin="noisy:Noisy",
        job_spec_path=str(spec),
        arrow_ipc_path="" if arrow is None else str(arrow),
        checkpoints_dir=str(run_dir / "checkpoints"),
        samples_dir=str(run_dir / "samples"),
        events_path=str(run_dir / "reports/events.jsonl"),
    )


def by_contract(contract: TrainerSubprocessContractV1, run_id: str) -> list[str]:
    path = Path(contract.job_spec_path).with_name(f"{run_id}.contract.json")
    write_contract(path, contract)
    return ["--job-id", new_job_id(), "--contract", str(path), "--run-id", run_id, "--auto-resume"]


def run(server: ForkServer, contract: TrainerSubprocessContractV1, run_id: str, **how: Any) -> tuple[int, str]:
    log = Path(contract.job_spec_path).parent / f"{run_id}.log"
    return server.run(by_contract(contract, run_id), log, **how), log.read_text()


def damage(path: Path) -> None:
    """Spoil every page of data, and leave size, time and footer as they are."""
    before, whole = path.stat(), bytearray(path.read_bytes())
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    whole[4:-footer] = bytes(len(whole) - 4 - footer)
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_run_by_contract_is_the_run_that_reads_parquet_itself(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=60)
    assert server.run(command(spec, tmp_path, "direct"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    code, said = run(server, contract_of(spec, "mapped", decoded(spec)), "mapped")
    assert code == 0, said
    assert "decoding" not in said
    assert_identical(tmp_path / "mapped", tmp_path / "direct")
    plan = read_json(tmp_path / "mapped/reports/resolved_config.json")
    assert plan["dataset"]["columns"] == ["x", "y"]
    assert plan["dataset"]["cache"] == str(tmp_path / "arrow")


def test_a_killed_run_goes_on_by_a_new_contract_to_the_same_end(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=60)
    contract = contract_of(spec, "run", decoded(spec, ["x", "y"]))
    assert server.run(command(spec, tmp_path, "direct"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    code, said = run(server, contract, "run", fault="op=rename,n=1,do=kill,path=step-00000040")
    assert code == -9, said
    code, said = run(server, contract, "run")
    assert code == 0, said
    assert events(tmp_path / "run", "resumed")
    assert_identical(tmp_path / "run", tmp_path / "direct")


def test_parquet_is_not_decoded_where_arrow_is_handed_over(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=20)
    arrow = decoded(spec)
    for path in spec.parent.glob("train-*.parquet"):
        damage(path)
    assert server.run(command(spec, tmp_path, "direct"), tmp_path / "log") == DATA_ERROR
    code, said = run(server, contract_of(spec, "mapped", arrow), "mapped")
    assert code == 0, said


def test_without_arrow_the_data_are_read_as_the_spec_says(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=20)
    code, said = run(server, contract_of(spec, "run", None), "run")
    assert code == 0, said
    assert read_json(tmp_path / "run/reports/resolved_config.json")["dataset"]["cache"] is None


def cut(arrow: Path, spec: Path) -> Path:
    os.truncate(arrow, arrow.stat().st_size - 64)
    return arrow


def without_manifest(arrow: Path, spec: Path) -> Path:
    arrow.with_suffix(".json").unlink()
    return arrow


def of_other_data(arrow: Path, spec: Path) -> Path:
    path = spec.with_name("train-0.parquet")
    pq.write_table(pq.read_table(path).slice(1), path, row_group_size=37)
    return arrow


def of_a_newer_file(arrow: Path, spec: Path) -> Path:
    os.utime(spec.with_name("train-0.parquet"))
    return arrow


def renamed(arrow: Path, spec: Path) -> Path:
    for suffix in (".json", ".arrow"):
        arrow.with_suffix(suffix).rename(arrow.with_name(f"other{suffix}"))
    return arrow.with_name("other.arrow")


def without_a_column(arrow: Path, spec: Path) -> Path:
    return decoded(spec, ["x"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (cut, "not a whole cache: it has"),
        (without_manifest, "there are no decoded data."),
        (of_other_data, "it was not decoded from the data of this run"),
        (of_a_newer_file, "it was not decoded from the data of this run"),
        (renamed, "it was not decoded from the data of this run"),
        (without_a_column, 'it has no column "y" of type float'),
        (lambda arrow, spec: arrow.with_name("gone.arrow"), "there are no decoded data."),
        (lambda arrow, spec: shutil.copy(spec, arrow), "not a whole cache: it has"),
    ],
)
def test_arrow_that_is_not_the_data_of_the_run_is_refused_and_never_decoded_quietly(
    server: ForkServer, tmp_path: Path, change: Callable[[Path, Path], Path], expected: str
) -> None:
    spec = settled(tmp_path / "job", max_steps=20)
    arrow = Path(change(decoded(spec), spec))
    code, said = run(server, contract_of(spec, "run", arrow), "run")
    assert code == DATA_ERROR, said
    assert said.startswith(f"data error [data_error] at {arrow}: {expected}")
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_stays_as_it_was_where_its_arrow_is_gone(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=60)
    contract = contract_of(spec, "run", decoded(spec))
    run(server, contract, "run", fault="op=rename,n=1,do=kill,path=step-00000040")
    shutil.rmtree(tmp_path / "arrow")
    before = (tmp_path / "run/reports/events.jsonl").read_bytes()
    code, said = run(server, contract, "run")
    assert code == DATA_ERROR, said
    assert (tmp_path / "run/reports/events.jsonl").read_bytes() == before
    decoded(spec)
    code, said = run(server, contract, "run")
    assert code == 0, said
    assert outcome(tmp_path / "run")["status"] == "completed"


def test_a_trainer_that_wants_more_memory_than_it_may_have_says_so_itself(tmp_path: Path) -> None:
    spec = settled(tmp_path / "job", max_steps=20)
    trainer = spec.with_name("noisy.py")
    greedy = "    def loss(self, model, batch):\n        self.hoard = torch.ones(1 << 30)\n"
    trainer.write_text(trainer.read_text().replace("    def loss(self, model, batch):\n", greedy))
    line = by_contract(contract_of(spec, "run", decoded(spec)), "run")
    launcher = ConfinedLauncher(Confinement(memory_bytes=3 << 30), os.environ)
    child = launcher.start([sys.executable, "-P", "-m", "trn.runner", *line], log=tmp_path / "log")
    assert child.wait(120) == OUT_OF_MEMORY, (tmp_path / "log").read_text()
    assert child.failure() is None
    assert outcome(tmp_path / "run")["status"] == "out_of_memory"
    assert stat.S_IMODE((tmp_path / "run/reports/outcome.json").stat().st_mode) == 0o600


def refused(server: ForkServer, tmp_path: Path, line: list[str], expected: int = REFUSED) -> str:
    """The one line with which this is refused, leaving nothing behind."""
    log = tmp_path / "refused.log"
    assert server.run(line, log) == expected, log.read_text()
    assert not (tmp_path / "run").exists()
    said = log.read_text().splitlines()
    log.unlink()
    assert said[-1] == "operations: 0"  # the server's own word: nothing was written
    return said[-2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainer_plugin", "noisy:Other"),
        ("checkpoints_dir", "/elsewhere/run/checkpoints"),
        ("samples_dir", "/elsewhere/samples"),
        ("events_path", "/elsewhere/events.jsonl"),
    ],
)
def test_a_contract_that_says_something_else_than_the_spec_and_the_run_is_refused(
    server: ForkServer, tmp_path: Path, name: str, text: str
) -> None:
    spec = settled(tmp_path / "job")
    contract = replace(contract_of(spec, "run", None), **{name: text})
    said = refused(server, tmp_path, [*by_contract(contract, "run"), "--runs-dir", str(tmp_path)])
    assert said.startswith(f"plan error [plan_refused] at {name} of the contract: expected ")
    assert said.endswith(f"found {text!r}. Contract and spec are written together, by the worker.")


def test_a_contract_of_another_run_is_refused(server: ForkServer, tmp_path: Path) -> None:
    line = by_contract(contract_of(settled(tmp_path / "job"), "other", None), "run")
    assert "checkpoints_dir of the contract" in refused(server, tmp_path, line)


def test_several_ranks_and_another_cache_are_refused(server: ForkServer, tmp_path: Path) -> None:
    spec = settled(tmp_path / "job")
    value = json.loads(spec.read_text())
    spec.write_text(json.dumps(value | {"ddp": True}))
    line = by_contract(contract_of(spec, "run", None), "run")
    assert "at ddp: a contract is for one process" in refused(server, tmp_path, line)
    value["dataset"]["cache"] = str(tmp_path / "mine")
    spec.write_text(json.dumps(value))
    line = by_contract(contract_of(spec, "run", tmp_path / "arrow/k.arrow"), "run")
    assert "arrow_ipc_path of the contract: expected a file in dataset.cache" in refused(server, tmp_path, line)


def test_a_contract_that_others_may_write_or_of_another_version_starts_nothing(
    server: ForkServer, tmp_path: Path
) -> None:
    contract = contract_of(settled(tmp_path / "job"), "run", None)
    line = by_contract(contract, "run")
    path = Path(line[line.index("--contract") + 1])
    path.chmod(0o620)
    assert "found mode 0620" in refused(server, tmp_path, line, USAGE)
    path.chmod(0o600)
    path.write_text(json.dumps(asdict(contract) | {"contract_version": "v99"}))
    assert "contract_version: expected 'v1', found 'v99'." in refused(server, tmp_path, line, USAGE)


@pytest.mark.parametrize("more", [["--set", "seed=1"], ["--profile", "big"], ["--flag", '["--seed", "seed", 1]']])
def test_what_a_contract_says_cannot_be_set_beside_it(server: ForkServer, tmp_path: Path, more: list[str]) -> None:
    line = by_contract(contract_of(settled(tmp_path / "job"), "run", None), "run")
    assert "--contract names a settled spec" in refused(server, tmp_path, [*line, *more], USAGE)


def test_a_run_that_is_let_go_of_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    held = Lock(tmp_path / ".lock")
    assert held.acquire()
    with pytest.raises(ResumeRefused, match="another process"):
        claim(tmp_path, "job-2")
    threading.Timer(0.3, held.release).start()
    claim(tmp_path, "job-2", wait_s=60).release()
