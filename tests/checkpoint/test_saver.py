"""Saving: whole or absent at every operation, ties kept, the streams of random numbers untouched."""

from __future__ import annotations

import enum
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trn import files
from trn.checkpoint import rng
from trn.checkpoint.discover import find_newest_good, load_payload, set_aside_later
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.checkpoint.retention import clean_leftovers
from trn.checkpoint.saver import Moment, Saver
from trn.errors import NoGoodCheckpoint, StorageError, TrainerError
from trn.journal import MetricsLog

PLAN = "f" * 64


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    files.set_fault(None)


class Run:
    """A run's folder with metrics and a saver, driven by hand."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        for name in ("checkpoints", "reports"):
            files.make_folder(folder / name)
        self.metrics = MetricsLog(folder / "reports/train_metrics.jsonl")
        self.saver = Saver(
            folder / "checkpoints",
            run_id="r",
            job_id="j",
            plan_fingerprint=PLAN,
            keep=keep,
            sync_journal=self.metrics.sync,
        )

    def step_and_save(self, step: int, best_step: int | None = None, state: dict[str, Any] | None = None) -> None:
        self.metrics.append({"step": step})
        moment = Moment(
            step=step,
            epoch=0,
            metrics={"step": step},
            journal={"train_metrics.jsonl": self.metrics.position},
            progress={"step": step},
            rng=[rng.capture()],
            best_step=best_step,
        )
        self.saver.save(state or state_of(step), moment)

    def newest(self, announced: set[int] | None = None) -> CheckpointMeta | None:
        return find_newest_good(self.folder, lineage={PLAN}, announced=announced or set()).meta


def state_of(step: int) -> dict[str, Any]:
    return {"w": torch.full((64, 8), float(step)), "n": step, "names": ["a", ("b", 1.5, None, True)]}


def names(run: Run) -> list[str]:
    return sorted(os.listdir(run.folder / "checkpoints"))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_and_save(1)
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    payload = load_payload(tmp_path, meta)
    assert torch.equal(payload["trainer"]["w"], state_of(1)["w"])
    assert payload["trainer"]["names"] == ["a", ("b", 1.5, None, True)]
    assert payload["progress"] == meta.progress == {"step": 1}
    assert [one.step for one in run.saver.committed()] == [1]
    assert run.saver.committed() == []


def test_the_copy_is_taken_at_once_and_later_changes_do_not_reach_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    state = state_of(1)
    run.step_and_save(1, state=state)
    state["w"].fill_(-1.0)
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    assert torch.equal(load_payload(tmp_path, meta)["trainer"]["w"], state_of(1)["w"])


def test_tied_tensors_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    weight = torch.randn(300, 300)
    run.step_and_save(1, state={"embed": weight, "head": weight, "view": weight[:10]})
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    loaded = load_payload(tmp_path, meta)["trainer"]
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()
    assert torch.equal(loaded["view"], weight[:10])
    assert meta.size_bytes < 1.5 * weight.nbytes


def test_saving_touches_no_random_stream(tmp_path: Path) -> None:
    rng.seed_all(3)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    rng.seed_all(3)
    run = Run(tmp_path)
    run.step_and_save(1)
    run.saver.wait()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_random_streams_are_restored_exactly_through_json() -> None:
    rng.seed_all(7)
    random.gauss(0, 1)
    np.random.randn(3)
    state = rng.capture()
    expected = [random.gauss(0, 1), np.random.randn(), torch.randn(5).tolist()]
    rng.seed_all(99)
    rng.restore(files_roundtrip(state))
    assert [random.gauss(0, 1), np.random.randn(), torch.randn(5).tolist()] == expected


def files_roundtrip(value: Any) -> Any:
    from trn.records import canonical_json, from_json

    return from_json(canonical_json(value))


def test_what_is_drawn_in_isolation_leaves_no_trace_and_repeats() -> None:
    rng.seed_all(7)
    expected = torch.rand(3).tolist()
    rng.seed_all(7)
    drawn = []
    for _ in range(2):
        with rng.isolated(5):
            drawn.append(torch.rand(2).tolist())
    assert drawn[0] == drawn[1]
    assert torch.rand(3).tolist() == expected


@pytest.mark.parametrize("value", [{1, 2}, object(), {"a": [np.zeros(3)]}, {(1, 2): 3}, torch.eye(3).to_sparse()])
def test_what_a_checkpoint_cannot_hold_is_refused_by_its_path(tmp_path: Path, value: object) -> None:
    with pytest.raises(TrainerError, match=r"state\['part'\]"):
        Run(tmp_path).step_and_save(1, state={"part": value})


def test_numpy_numbers_are_kept_as_plain_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_and_save(1, state={"loss": np.float64(0.1), "flag": True})
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    assert load_payload(tmp_path, meta)["trainer"] == {"loss": 0.1, "flag": True}


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    for step in range(1, 7):
        run.step_and_save(step, best_step=min(step, 2))
    run.saver.wait()
    assert listed_steps(tmp_path / "checkpoints") == [6, 5, 2]
    assert (tmp_path / "checkpoints/best.pt").samefile(tmp_path / "checkpoints" / checkpoint_name(2))
    assert (tmp_path / "checkpoints/last.pt").samefile(tmp_path / "checkpoints" / checkpoint_name(6))


def test_keep_one_still_keeps_two(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    for step in range(1, 5):
        run.step_and_save(step)
    run.saver.wait()
    assert listed_steps(tmp_path / "checkpoints") == [4, 3]


def count_operations(folder: Path) -> int:
    run = Run(folder, keep=2)
    for step in (1, 2):
        run.step_and_save(step)
    run.saver.wait()
    files.set_fault("op=any,n=1000000,do=kill")
    run.step_and_save(3)
    run.saver.wait()
    count = files.fault_count()
    files.set_fault(None)
    return count


def test_a_kill_at_every_operation_of_save_and_prune_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    total = count_operations(tmp_path / "count")
    assert total > 15
    survivors = set()
    for n in range(1, total + 1):
        folder = tmp_path / f"kill-{n}"
        pid = os.fork()
        if pid == 0:
            run = Run(folder, keep=2)
            for step in (1, 2):
                run.step_and_save(step)
            run.saver.wait()
            files.set_fault(f"op=any,n={n},do=kill")
            run.step_and_save(3)
            run.saver.wait()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        again = Run(folder, keep=2)
        meta = again.newest()
        assert meta is not None
        assert torch.equal(load_payload(folder, meta)["trainer"]["w"], state_of(meta.step)["w"])
        survivors.add(meta.step)
        set_aside_later(folder, step=meta.step, epochs_over=0, best_step=None, job_id="k")
        left = [name for name in names(again) if not name.startswith(("step-", "last.", "best."))]
        assert left == [], "leftovers are cleaned, never trusted"
        assert {Path(name).stem for name in names(again) if name.endswith(".pt") and name.startswith("step")} == {
            f"step-{step:08d}" for step in listed_steps(folder / "checkpoints")
        }
    assert survivors == {2, 3}


@pytest.mark.parametrize("do", ["enospc", "eio", "short"])
def test_a_refusal_at_every_operation_is_reported_or_mended_and_loses_nothing(tmp_path: Path, do: str) -> None:
    total = count_operations(tmp_path / "count")
    outcomes = set()
    for n in range(1, total + 1):
        folder = tmp_path / f"{do}-{n}"
        run = Run(folder, keep=2)
        for step in (1, 2):
            run.step_and_save(step)
        run.saver.wait()
        files.set_fault(f"op=any,n={n},do={do}")
        try:
            run.step_and_save(3)
            run.saver.wait()
            outcomes.add("mended")
        except StorageError as error:
            outcomes.add("reported")
            assert "\n" not in str(error)  # noqa: PT017 - either ending is right, but not any message
        files.set_fault(None)
        meta = run.newest()
        assert meta is not None
        assert torch.equal(load_payload(folder, meta)["trainer"]["w"], state_of(meta.step)["w"])
    assert outcomes == ({"mended"} if do == "short" else {"mended", "reported"} if do == "eio" else {"reported"})


def corrupt_byte(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flip", "truncate", "zeros", "delete", "empty"])
@pytest.mark.parametrize("victim", ["pt", "meta", "metrics"])
def test_damage_of_the_newest_is_found_and_the_one_before_is_used(tmp_path: Path, victim: str, kind: str) -> None:
    run = Run(tmp_path)
    run.step_and_save(1)
    run.step_and_save(2)
    run.saver.wait()
    path = {
        "pt": tmp_path / "checkpoints" / checkpoint_name(2),
        "meta": tmp_path / "checkpoints" / meta_name(2),
        "metrics": tmp_path / "reports/train_metrics.jsonl",
    }[victim]
    # the hints are hard links to the same bytes: damage must not be followed there either
    data = path.read_bytes()
    if kind == "delete":
        path.unlink()
    elif kind == "flip":
        corrupt_byte(path, 0.9)
    else:
        path.write_bytes({"truncate": data[:-3], "zeros": b"\0" * len(data), "empty": b""}[kind])
    if victim == "metrics" and kind in ("zeros", "delete", "empty"):
        with pytest.raises(NoGoodCheckpoint, match="metrics"):
            run.newest({1, 2})
        return
    found = find_newest_good(tmp_path, lineage={PLAN}, announced={1, 2})
    assert found.meta is not None
    assert found.meta.step == 1
    assert [file for file, _ in found.rejected] == [checkpoint_name(2)]


def test_swapped_checkpoints_are_both_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.step_and_save(step)
    run.saver.wait()
    folder = tmp_path / "checkpoints"
    for name in (checkpoint_name, meta_name):
        (folder / name(2)).rename(folder / "x")
        (folder / name(3)).rename(folder / name(2))
        (folder / "x").rename(folder / name(3))
    meta = run.newest()
    assert meta is not None
    assert meta.step == 1


def test_another_plans_checkpoint_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_and_save(1)
    run.saver.wait()
    with pytest.raises(NoGoodCheckpoint, match="another plan"):
        find_newest_good(tmp_path, lineage={"0" * 64}, announced=set())


def test_a_run_without_any_commit_has_none_and_that_is_no_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.newest() is None
    (tmp_path / "checkpoints" / checkpoint_name(5)).write_bytes(b"half of one")
    assert run.newest() is None
    assert clean_leftovers(tmp_path / "checkpoints") == [checkpoint_name(5)]


def test_later_checkpoints_are_set_aside_not_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.step_and_save(step)
    run.saver.wait()
    moved = set_aside_later(tmp_path, step=1, epochs_over=0, best_step=None, job_id="j2")
    assert len(moved) == 4
    assert listed_steps(tmp_path / "checkpoints") == [1]
    assert sorted(os.listdir(tmp_path / "checkpoints/abandoned-j2")) == sorted(moved)
    assert (tmp_path / "checkpoints/last.pt").samefile(tmp_path / "checkpoints" / checkpoint_name(1))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr("trn.checkpoint.saver.free_bytes", lambda folder: 1000)
    run.step_and_save(1)
    with pytest.raises(StorageError, match="1,000 are free"):
        run.saver.wait()
    assert names(run) == []


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):  # noqa: UP042 - the older spelling is what trainers have
    A = "a"


def test_keys_and_values_of_subclasses_are_saved_as_what_they_are(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_and_save(1, state={Number.ONE: Word.A, np.str_("k"): np.float64(0.5)})
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    assert load_payload(tmp_path, meta)["trainer"] == {1: "a", "k": 0.5}


def test_a_number_that_the_loader_cannot_read_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="more than 64 bits"):
        Run(tmp_path).step_and_save(1, state={"n": 2**5000})


def test_a_conjugate_view_is_saved_with_its_own_values(tmp_path: Path) -> None:
    run, z = Run(tmp_path), torch.tensor([1j])
    run.step_and_save(1, state={"z": z, "zc": z.conj()})
    run.saver.wait()
    meta = run.newest()
    assert meta is not None
    loaded = load_payload(tmp_path, meta)["trainer"]
    assert (loaded["z"].item(), loaded["zc"].item()) == (1j, -1j)
