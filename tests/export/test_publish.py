"""From a folder aside to exports/: whole or absent, whatever interrupts it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from support.plans import plan_of
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import DataError, PlanRefused, ResumeRefused, StorageError, TrainerError
from trn.export.onnx_file import require_libraries
from trn.export.publish import forget_rejected, publish, reject, staging
from trn.export.report import fail_parity, skip_parity
from trn.export.rows import keep_rows, read_rows
from trn.export.sidecar import files_of, head_of, sidecar_bytes
from trn.export.weights import model_of, write_safetensors
from trn.feed import open_dataset
from trn.files import set_fault
from trn.records import pretty_json, read_json, sha256_json
from trn.spec.plan_model import DatasetPlan, Plan
from trn.verify.exports import check_exports
from trn.verify.finding import Run

META = CheckpointMeta(
    file="step-00000003.pt",
    sha256="ab" * 32,
    size_bytes=1,
    step=3,
    epoch=0,
    run_id="run",
    job_id="job",
    plan_fingerprint="",
    created_at="",
    metrics={},
    journal={},
    progress={},
    rng=[],
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("some", self.embedding.weight.detach()[:2])


def write_export(run_dir: Path, plan: Plan, model: nn.Module | None = None) -> None:
    """As `trn export --format safetensors` would."""
    exports = run_dir / "exports"
    head = head_of(plan, META, "live", "c" * 64) | {"plan_fingerprint": plan.fingerprint}
    with staging(exports, 0.1) as aside:
        details = write_safetensors(model or nn.Linear(2, 2), aside, {"step": "3"})
        (aside / "model.safetensors.meta.json").write_bytes(
            sidecar_bytes("safetensors", head, files_of(aside, aside.iterdir()), details)
        )
        publish(aside, exports, "model.safetensors.meta.json")


def run_in(tmp_path: Path) -> tuple[Path, Plan]:
    run_dir = tmp_path / "run"
    (run_dir / "reports").mkdir(parents=True)
    (run_dir / "reports/events.jsonl").write_text('{"event":"checkpoint","sha256":"' + "ab" * 32 + '"}\n')
    return run_dir, plan_of(run_dir)


def problems(run_dir: Path, plan: Plan) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in check_exports(Run(run_dir, plan)) if one.problem]


def test_weights_by_name_tied_ones_once(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    model = Tied()
    write_export(run_dir, plan, model)
    path = run_dir / "exports/model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["embedding.weight", "some"]
        assert torch.equal(file.get_tensor("embedding.weight"), model.embedding.weight)
        assert file.metadata() == {"format": "pt", "step": "3", "tied": '{"head.weight":"embedding.weight"}'}
    assert (path.stat().st_mode & 0o777, problems(run_dir, plan)) == (0o600, [])
    assert read_json(run_dir / "exports/model.safetensors.meta.json")["safetensors"]["tensors"] == 2


def test_an_export_is_whole_or_absent_wherever_it_is_broken_off(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    write_export(run_dir, plan)
    for operation, count in (("mkdir", 1), ("unlink", 1), ("rename", 1), ("rename", 2)):
        set_fault(f"op={operation},n={count},do=enospc,path=exports")
        try:
            with pytest.raises(StorageError):
                write_export(run_dir, plan)
        finally:
            set_fault(None)
        assert problems(run_dir, plan) == []
        names = {path.name for path in (run_dir / "exports").iterdir()}
        assert names <= {".lock", "model.safetensors", "model.safetensors.meta.json"}
    write_export(run_dir, plan)
    assert problems(run_dir, plan) == []


def killed_at(operation: int, run_dir: Path, plan: Plan) -> bool:
    """Whether a child that exports is killed at that durable operation; False: it came to its end before."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        set_fault(f"op=any,n={operation},do=kill,path=exports")
        write_export(run_dir, plan)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"the child ended with {status}"
    return status != 0


@pytest.mark.parametrize("has_one", [False, True])
def test_a_kill_at_any_moment_leaves_an_export_that_holds_or_none(tmp_path: Path, has_one: bool) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    operation = 1
    while True:
        if has_one:
            write_export(run_dir, plan)
        if not killed_at(operation, run_dir, plan):
            break
        assert problems(run_dir, plan) == []
        operation += 1
    assert operation > 5
    assert problems(run_dir, plan) == []
    assert not [name for name in os.listdir(run_dir / "exports") if name.startswith(".export")]


def test_what_a_crash_left_is_cleared_by_the_next_one_and_two_at_once_are_refused(tmp_path: Path) -> None:
    left = tmp_path / "exports/.export.tmp-1-0"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    with staging(tmp_path / "exports", 0.0) as aside:
        assert not left.exists()
        assert aside.is_dir()
        with pytest.raises(ResumeRefused, match="another export of this run is going on"), staging(aside.parent, 0.0):
            pass
    assert os.listdir(tmp_path / "exports") == [".lock"]


def test_a_folder_that_leads_elsewhere_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResumeRefused, match="exports is a symbolic link"), staging(tmp_path / "exports", 0.0):
        pass
    assert os.listdir(tmp_path / "elsewhere") == []


def test_links_in_the_folder_are_replaced_and_never_followed(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    exports = run_dir / "exports"
    exports.mkdir()
    for name in ("model.safetensors", "model.safetensors.meta.json"):
        (exports / name).symlink_to(outside / "kept")
    for name in ("rejected", ".export.tmp-1-0"):
        (exports / name).symlink_to(outside)
    write_export(run_dir, plan)
    forget_rejected(exports)
    assert [path.name for path in exports.iterdir() if path.is_symlink()] == []
    assert (outside / "kept").read_text() == "kept"
    (exports / ".lock").unlink()
    (exports / ".lock").symlink_to(outside / "new")
    with pytest.raises(StorageError):
        write_export(run_dir, plan)
    assert not (outside / "new").exists()


def test_a_disk_that_refuses_another_librarys_write_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"), staging(tmp_path / "exports", 0.0):
        raise OSError(28, "No space left on device")


def test_files_of_the_export_before_go_with_it(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    for names in (["model.onnx", "model.onnx.data"], ["model.onnx"]):
        with staging(exports, 0.0) as aside:
            for name in names:
                (aside / name).write_text(name)
            head = {"run_id": "run", "plan_fingerprint": "f"}
            files = files_of(aside, aside.iterdir())
            (aside / "model.onnx.meta.json").write_bytes(sidecar_bytes("onnx", head, files, {}))
            publish(aside, exports, "model.onnx.meta.json")
    assert sorted(os.listdir(exports)) == [".lock", "model.onnx", "model.onnx.meta.json"]


def test_what_is_rejected_lies_apart_and_the_last_one_only(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    (tmp_path / "reports").mkdir()
    for content in ("one", "two"):
        with staging(exports, 0.0) as aside:
            (aside / "model.onnx").write_text(content)
            (aside / "onnx_parity.json").write_text("{}")
            reject(aside, exports, tmp_path / "reports/onnx_parity.json")
    assert sorted(os.listdir(exports)) == [".lock", "rejected"]
    assert (exports / "rejected/model.onnx").read_text() == "two"
    assert (tmp_path / "reports/onnx_parity.json").exists()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("model.safetensors", b"other", "changed or swapped"),
        ("model.safetensors", None, "it is gone"),
        ("model.safetensors.meta.json", b"{}", "its own digest is wrong"),
        ("model.safetensors", b"", "changed or swapped"),
    ],
)
def test_verify_finds_what_was_changed(tmp_path: Path, name: str, change: bytes | None, told: str) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    write_export(run_dir, plan)
    path = run_dir / "exports" / name
    path.unlink() if change is None else path.write_bytes(change)
    (problem,) = problems(run_dir, plan)
    assert told in problem


def forged(run_dir: Path, **changes: Any) -> None:
    """The sidecar with other keys, and the digest that goes with them: whoever forges one can do that."""
    path = run_dir / "exports/model.safetensors.meta.json"
    value = read_json(path) | changes
    value.pop("meta_sha256")
    value = {key: one for key, one in value.items() if one is not None}
    path.write_bytes(pretty_json(value | {"meta_sha256": sha256_json(value)}))


FILE = {"sha256": "ab" * 32, "size_bytes": 3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": []}, "it does not name model.safetensors"),
        ({"files": [{"name": "../plan.json", **FILE}]}, "it leads out of the folder"),
        ({"files": [{"name": "/etc/hostname", **FILE}]}, "it leads out of the folder"),
        ({"files": [{"name": "nul\0", **FILE}]}, "it is gone"),
        ({"files": [{"name": "x" * 5000, **FILE}]}, "File name too long"),
        ({"files": [{"name": "model.safetensors"}]}, "KeyError"),
        ({"files": None}, "KeyError"),
        ({"format": "onnx"}, "it is not where a sidecar of format 'onnx' belongs"),
        ({"format": "zip"}, "it is not where a sidecar of format 'zip' belongs"),
    ],
)
def test_verify_trusts_no_sidecar(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    write_export(run_dir, plan)
    forged(run_dir, **changes)
    found = problems(run_dir, plan)
    assert any(told in one for one in found), found
    write_export(run_dir, plan)  # and the next export is not led astray
    assert problems(run_dir, plan) == []


def write_onnx_of(exports: Path, plan: Plan, status: str, policy: str) -> None:
    head = head_of(plan, META, "live", "c" * 64) | {"plan_fingerprint": plan.fingerprint}
    exports.mkdir(parents=True)
    (exports / "model.onnx").write_text("onnx")
    files = files_of(exports, exports.iterdir())
    parity = {"status": status, "policy": policy, "reason": None, "max_abs": {}}
    (exports / "model.onnx.meta.json").write_bytes(sidecar_bytes("onnx", head, files, {"parity": parity}))
    report = {
        "run_id": plan.run_id,
        "plan_fingerprint": plan.fingerprint,
        "status": status,
        "passed": status == "passed",
        "onnx": f"{exports.relative_to(plan.run_dir)}/model.onnx",
        "onnx_sha256": files[0]["sha256"],
    }
    Path(plan.run_dir, "reports/onnx_parity.json").write_bytes(pretty_json(report))


def test_a_file_that_did_not_pass_is_found_where_it_does_not_belong(tmp_path: Path) -> None:
    run_dir, plan = run_in(tmp_path)
    write_onnx_of(run_dir / "exports/rejected", plan, "failed", "fail")
    assert problems(run_dir, plan) == []
    for path in (run_dir / "exports/rejected").iterdir():
        path.rename(run_dir / "exports" / path.name)
    (problem,) = problems(run_dir, plan)
    assert "failed under the policy fail: it does not belong here" in problem


def test_a_report_without_its_export_says_so_and_is_no_damage(tmp_path: Path) -> None:
    """As a kill between the renames leaves it."""
    run_dir, plan = run_in(tmp_path)
    write_onnx_of(run_dir / "exports", plan, "passed", "fail")
    assert problems(run_dir, plan) == []
    (run_dir / "exports/model.onnx.meta.json").unlink()
    found = {one.what: one.problem for one in check_exports(Run(run_dir, plan))}
    assert found["reports/onnx_parity.json: of an export that is not there; export again"] is None
    assert not any("passed" in what for what in found)


def test_verify_knows_whose_weights_they_are(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run_dir, plan = run_in(tmp_path)
    write_export(run_dir, plan)
    (run_dir / "reports/events.jsonl").write_text("")
    (problem,) = problems(run_dir, plan)
    assert "a sha256 that this run has no record of" in problem
    (problem,) = problems(run_dir, plan_of(run_dir, seed=2))
    assert "it belongs to another run or plan" in problem


def test_a_skip_waits_for_an_export_that_goes_on(tmp_path: Path) -> None:
    run_dir, plan = run_in(tmp_path)
    with staging(run_dir / "exports", 0.0):
        assert skip_parity(run_dir, plan, "export.onnx is false", 0.0) is None
    assert not (run_dir / "reports/onnx_parity.json").exists()
    assert skip_parity(run_dir, plan, "export.onnx is false", 0.0) is not None
    with staging(run_dir / "exports", 0.0):
        pass  # and the lock is free again


def test_no_export_is_said_once_and_never_over_a_report_that_stands(tmp_path: Path) -> None:
    run_dir, plan = run_in(tmp_path)
    assert skip_parity(run_dir, plan, "export.onnx is false") == run_dir / "reports/onnx_parity.json"
    report = read_json(run_dir / "reports/onnx_parity.json")
    assert (report["status"], report["passed"], report["reason"]) == ("skipped", None, "export.onnx is false")
    assert problems(run_dir, plan) == []
    (run_dir / "exports").mkdir()
    (run_dir / "exports/model.onnx.meta.json").write_text("{}")
    assert skip_parity(run_dir, plan, "export.onnx is false") is None
    fail_parity(run_dir, plan, "it has no ONNX form")
    report = read_json(run_dir / "reports/onnx_parity.json")
    assert (report["status"], report["passed"], report["onnx"]) == ("failed", False, None)


def test_the_model_of_a_state_is_the_one_that_is_called_so_or_the_only_one() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert model_of({"model": one, "teacher": other}) is one
    assert model_of({"net": one, "step": 3}) is one
    assert model_of(one) is one
    with pytest.raises(TrainerError, match="the state has 2 modules: a, b"):
        model_of({"a": one, "b": other})


def test_what_safetensors_does_not_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"version": 1}

    with pytest.raises(TrainerError, match="'_extra_state' in the model's state is dict"):
        write_safetensors(Extra(1, 1), tmp_path, {})
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("some", torch.eye(2).to_sparse())
    with pytest.raises(TrainerError, match=r"'some' in the model's state is a tensor of layout torch.sparse_coo"):
        write_safetensors(sparse, tmp_path, {})


def test_a_disk_that_is_full_for_safetensors_is_a_storage_error(tmp_path: Path) -> None:
    """In a child: a limit on the size of files is not taken back."""
    pytest.importorskip("safetensors")
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_safetensors(nn.Linear(100, 100), tmp_path, {})
        except StorageError as error:
            os._exit(3 if "File too large" in error.message and "\n" not in error.message else 4)
        finally:
            os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_missing_library_is_named_with_what_to_install() -> None:
    with pytest.raises(PlanRefused, match=r"needs no_such_thing, not installed\. pip install 'trn-runtime\[export\]'"):
        require_libraries("no_such_thing", "torch")


def table(path: Path, rows: int, width: int) -> DatasetPlan:
    x = np.arange(rows * width, dtype=np.float32)
    pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x), width)}), path)
    dataset = open_dataset([str(path)], columns=["x"])
    part = plan_of(path.parent / "r").dataset
    return part.model_copy(update={"data": dataset.to_json(), "columns": ["x"]})


def test_the_first_rows_are_kept_and_read_back(tmp_path: Path) -> None:
    run_dir, _ = run_in(tmp_path)
    plan = plan_of(run_dir, dataset=table(tmp_path / "x.parquet", 20, 3))
    assert keep_rows(plan, run_dir)
    (tmp_path / "x.parquet").unlink()
    assert read_rows(run_dir).column("x").to_pylist() == [[3.0 * r, 3.0 * r + 1, 3.0 * r + 2] for r in range(8)]


@pytest.mark.slow
def test_rows_that_are_too_large_are_not_kept_and_read_from_the_data(tmp_path: Path) -> None:
    run_dir, _ = run_in(tmp_path)
    width = 1 << 20  # 4 MB a row
    plan = plan_of(run_dir, dataset=table(tmp_path / "x.parquet", 3, width))
    assert keep_rows(plan, run_dir)
    assert read_rows(run_dir).num_rows == 1
    plan = plan_of(run_dir, dataset=table(tmp_path / "y.parquet", 1, 3 * width))
    (run_dir / "reports/export_rows.arrow").unlink()
    assert not keep_rows(plan, run_dir)
    with pytest.raises(DataError, match="there is no row to export with"):
        read_rows(run_dir)


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    run_dir, _ = run_in(tmp_path)
    path = run_dir / "reports/export_rows.arrow"
    path.write_bytes(b"no arrow")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(run_dir)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3), np.float32))
    for odd in (column, pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), column)):
        write_rows(path, pa.record_batch([odd], ["t"]))
        with pytest.raises(DataError, match="column 't' has an extension type"):
            read_rows(run_dir)


def write_rows(path: Path, *batches: pa.RecordBatch, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def test_rows_that_are_not_what_we_write_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    run_dir, _ = run_in(tmp_path)
    path = run_dir / "reports/export_rows.arrow"
    one = pa.record_batch({"x": [1.5, 2.5], "c": pa.array(["a", "b"]).dictionary_encode()})
    write_rows(path, one)
    assert read_rows(run_dir).equals(one)
    bomb = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 20)), 1 << 20)})
    for compression in ("zstd", "lz4"):
        for compressed in (bomb, one):
            write_rows(path, compressed, compression=compression)
            with pytest.raises(DataError, match="it is compressed"):
                read_rows(run_dir)
    for batches in ([one, one], [pa.record_batch({"x": pa.nulls(9)})], [one.slice(0, 0)]):
        write_rows(path, *batches)
        with pytest.raises(DataError, match="expected one batch of 1 to 8 rows"):
            read_rows(run_dir)
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match="it has more than 16777216 bytes"):
        read_rows(run_dir)


def test_rows_with_any_byte_changed_are_read_or_refused(tmp_path: Path) -> None:
    run_dir, _ = run_in(tmp_path)
    path = run_dir / "reports/export_rows.arrow"
    write_rows(path, pa.record_batch({"s": ["abc", "de"], "l": [[1, 2], [3]]}))
    good = path.read_bytes()
    refused = 0
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 0x55
        path.write_bytes(data)
        try:
            read_rows(run_dir).to_pylist()
        except (DataError, UnicodeDecodeError):  # text that is no UTF-8 is found where it is read
            refused += 1
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(run_dir)
    assert refused > len(good) // 8
