"""Checkpoints and samples for whoever collects them: whole, of this run alone, and never the run's own files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from support.sending import wait_for
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import StorageError
from trn.files import new_sha256, sha256_file
from trn.worker.handing_out import HandingOut, refuse_unfit_folders
from trn.worker.refusal import StartupRefused

Commit = Callable[..., Path]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name in ("checkpoints", "samples"):
        (tmp_path / "runs/exp" / name).mkdir(parents=True)
    return tmp_path / "runs/exp"


@pytest.fixture
def commit(run_dir: Path) -> Commit:
    def make(step: int, data: bytes = b"weights", *, run_id: str = "exp", folder: Path | None = None) -> Path:
        place = folder or run_dir / "checkpoints"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"step-{step:08d}.pt"
        path.write_bytes(data * step)
        meta = CheckpointMeta(
            path.name, sha256_file(path), path.stat().st_size, step, 0, run_id, "job-1", "f" * 64, "now", {}, {}, {}, []
        )
        path.with_name(f"step-{step:08d}.meta.json").write_bytes(meta.to_bytes())
        return path

    return make


def handing(run_dir: Path, tmp_path: Path) -> HandingOut:
    return HandingOut(run_dir, "exp", checkpoints=tmp_path / "ck", samples=tmp_path / "sa")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_committed_is_there_while_the_run_goes_on(run_dir: Path, tmp_path: Path, commit: Commit) -> None:
    one = handing(run_dir, tmp_path)
    one.start()
    commit(2)
    (run_dir / "checkpoints/step-00000004.pt").write_bytes(b"no meta yet")
    wait_for(lambda: len(names(tmp_path / "ck")) == 2, "the first checkpoint")
    (run_dir / "samples/step-00000002-a.txt").write_text("a sample")
    (run_dir / "samples/.step.tmp-1").write_text("half")
    one.end()
    assert names(tmp_path / "ck") == ["step-00000002.meta.json", "step-00000002.pt"]
    assert names(tmp_path / "sa") == ["step-00000002-a.txt"]
    assert (tmp_path / "ck/step-00000002.pt").stat().st_ino != (run_dir / "checkpoints/step-00000002.pt").stat().st_ino


def test_what_the_run_prunes_goes_and_what_somebody_else_put_there_stays(
    run_dir: Path, tmp_path: Path, commit: Commit
) -> None:
    path = commit(1)
    commit(2)
    one = handing(run_dir, tmp_path)
    one.start()
    wait_for(lambda: len(names(tmp_path / "ck")) == 4, "both")
    (tmp_path / "ck/notes.txt").write_text("mine")
    commit(9, run_id="other", folder=tmp_path / "ck")
    path.with_name("step-00000001.meta.json").unlink()
    path.unlink()
    one.end()
    assert names(tmp_path / "ck") == [
        *("notes.txt", "step-00000002.meta.json", "step-00000002.pt"),
        *("step-00000009.meta.json", "step-00000009.pt"),
    ]


def test_a_step_that_was_made_anew_replaces_the_one_that_was_there(
    run_dir: Path, tmp_path: Path, commit: Commit
) -> None:
    commit(3, b"old")
    one = handing(run_dir, tmp_path)
    one.start()
    one.end()
    commit(3, b"new")
    one = handing(run_dir, tmp_path)
    one.start()
    one.end()
    assert (tmp_path / "ck/step-00000003.pt").read_bytes() == b"newnewnew"


def test_a_step_that_a_resume_makes_anew_meanwhile_is_handed_out_too(
    run_dir: Path, tmp_path: Path, commit: Commit
) -> None:
    commit(3, b"old")
    one = handing(run_dir, tmp_path)
    one.start()
    wait_for(lambda: len(names(tmp_path / "ck")) == 2, "the old one")
    (run_dir / "checkpoints/step-00000003.meta.json").unlink()  # so that the new meta is another file
    commit(3, b"new")
    one.end()
    assert (tmp_path / "ck/step-00000003.pt").read_bytes() == b"newnewnew"
    meta = CheckpointMeta.read(tmp_path / "ck/step-00000003.meta.json")
    assert meta.sha256 == sha256_file(tmp_path / "ck/step-00000003.pt")


def test_the_files_of_a_trainers_own_folder_go_along_if_they_are_what_the_meta_says(
    run_dir: Path, tmp_path: Path, commit: Commit
) -> None:
    for step, data in ((1, b"whole"), (2, b"torn!")):
        own = commit(step).with_name(f"step-{step:08d}.files")
        (own / "deep").mkdir(parents=True)
        (own / "deep/adapter.bin").write_bytes(data)
        path = run_dir / f"checkpoints/step-{step:08d}.meta.json"
        listed = [{"path": "deep/adapter.bin", "size_bytes": 5, "sha256": new_sha256(b"whole").hexdigest()}]
        path.write_bytes(replace(CheckpointMeta.read(path), files=listed, hook={}).to_bytes())
    one = handing(run_dir, tmp_path)
    one.start()
    one.end()
    first = [name for name in names(tmp_path / "ck") if name.startswith("step-00000001")]
    assert first == ["step-00000001.files/deep/adapter.bin", "step-00000001.meta.json", "step-00000001.pt"]
    assert "step-00000002.meta.json" not in names(tmp_path / "ck")


@pytest.mark.parametrize("place", ["samples", "samples/deep", "samples/a", "checkpoints/step-00000001.files", "pt"])
def test_a_link_that_a_trainer_puts_into_its_run_leads_the_worker_nowhere(
    run_dir: Path, tmp_path: Path, commit: Commit, place: str
) -> None:
    """The worker's own variables lie in /proc/self/environ; here a file with a secret stands for them."""
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    for path in (secret / "environ", secret / "inner/environ"):
        path.write_text("TOKEN")
    pt = commit(1)
    listed = [{"path": "environ", "size_bytes": 5, "sha256": new_sha256(b"TOKEN").hexdigest()}]
    meta = run_dir / "checkpoints/step-00000001.meta.json"
    if place == "samples":
        (run_dir / "samples").rmdir()
    if place.endswith(".files"):
        meta.write_bytes(replace(CheckpointMeta.read(meta), files=listed, hook={}).to_bytes())
    if place == "pt":
        pt.write_text("TOKEN")
        meta.write_bytes(replace(CheckpointMeta.read(meta), sha256=sha256_file(pt), size_bytes=5).to_bytes())
        pt.unlink()
        pt.symlink_to(secret / "environ")
    else:
        (run_dir / place).symlink_to(secret / "environ" if place == "samples/a" else secret)
    one = handing(run_dir, tmp_path)
    one.start()
    with contextlib.suppress(StorageError):
        one.end()
    handed = [path for place in ("ck", "sa") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert not [path for path in handed if path.read_bytes() == b"TOKEN"]


def test_a_full_disk_still_loses_what_the_run_has_pruned(run_dir: Path, tmp_path: Path, commit: Commit) -> None:
    path = commit(1)
    one = handing(run_dir, tmp_path)
    one.start()
    wait_for(lambda: len(names(tmp_path / "ck")) == 2, "the first")
    (tmp_path / "ck/step-00000002.pt").mkdir()  # nothing can be put there
    commit(2)
    path.with_name("step-00000001.meta.json").unlink()
    path.unlink()
    with pytest.raises(StorageError):
        one.end()
    assert names(tmp_path / "ck") == []


def test_a_damaged_checkpoint_is_not_handed_out(run_dir: Path, tmp_path: Path, commit: Commit) -> None:
    commit(1).write_bytes(b"torn")
    one = handing(run_dir, tmp_path)
    one.start()
    one.end()
    assert names(tmp_path / "ck") == []


def test_a_folder_that_takes_nothing_is_told_at_the_end(run_dir: Path, tmp_path: Path, commit: Commit) -> None:
    one = handing(run_dir, tmp_path)
    one.start()
    (tmp_path / "ck/step-00000001.pt").mkdir()
    commit(1)
    with pytest.raises(StorageError):
        one.end()
    assert (run_dir / "checkpoints/step-00000001.pt").read_bytes() == b"weights"


def test_another_runs_checkpoints_are_refused(run_dir: Path, tmp_path: Path, commit: Commit) -> None:
    commit(5, run_id="other", folder=tmp_path / "ck")
    with pytest.raises(StartupRefused, match=r"holds a checkpoint of the run 'other' at step 5") as caught:
        refuse_unfit_folders(run_dir, "exp", checkpoints=tmp_path / "ck", samples=None, events=None)
    assert caught.value.exit_status == 78
    refuse_unfit_folders(run_dir, "other", checkpoints=tmp_path / "ck", samples=None, events=None)


@pytest.mark.parametrize(
    "places",
    [
        {"checkpoints": "runs/exp/checkpoints"},
        {"samples": "runs"},
        {"checkpoints": "same", "samples": "same"},
        {"events": "runs/exp/reports/events.jsonl"},
        {"checkpoints": "file"},
    ],
)
def test_places_that_lie_in_each_other_are_refused(run_dir: Path, tmp_path: Path, places: dict[str, str]) -> None:
    (tmp_path / "file").write_text("")
    given = {name: tmp_path / places[name] if name in places else None for name in ("checkpoints", "samples", "events")}
    with pytest.raises(StartupRefused) as caught:
        refuse_unfit_folders(run_dir, "exp", **given)
    assert caught.value.startup_code == "startup.invalid_artifact_paths"
