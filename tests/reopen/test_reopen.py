"""A run is reopened from its folder alone, exactly as it was, and the folder stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from support.compare import differences
from support.reopening import contents
from trn.checkpoint import rng
from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import checkpoint_name, meta_name
from trn.errors import DeviceError, NoGoodCheckpoint, ResumeRefused, UsageError
from trn.reopen import Reopened, reopen
from trn.spec.plan_model import Plan
from trn.trainer.loading import OWN_LOOP

pytestmark = pytest.mark.slow


def damage(path: Path, at: int = 5000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite_plan(run_dir: Path, **changes: object) -> None:
    """Change what has no part in the fingerprint."""
    path = run_dir / "reports/resolved_config.json"
    plan = Plan.read(path.read_bytes(), str(path)).model_copy(update=changes)
    path.write_bytes(plan.to_bytes())


def assert_is_its_checkpoint(one: Reopened) -> None:
    payload = load_payload(Path(one.plan.run_dir), one.meta)
    assert differences("", one.trainer.state_dict(one.state), payload["trainer"]) == []


# what is given back


def test_state_and_streams_are_those_of_the_checkpoint_and_nothing_in_the_folder_changes(run_dir: Path) -> None:
    before = contents(run_dir)
    one = reopen(run_dir, checkpoint="25")
    assert rng.capture() == load_payload(run_dir, one.meta)["rng"][0]
    assert_is_its_checkpoint(one)
    assert (one.ctx.step, one.ctx.epoch, one.meta.step) == (25, 0, 25)
    assert one.where == run_dir / "checkpoints/step-00000025.pt"
    assert (one.plan.run_dir, one.ctx.run_dir) == (str(run_dir), run_dir)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert contents(run_dir) == before


def test_neither_data_nor_spec_are_needed(trained: Path, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    shutil.copy(trained / "job/noisy.py", tmp_path / "code")
    plan = json.loads((run_dir / "reports/resolved_config.json").read_text())
    rewrite_plan(run_dir, spec_folder=str(tmp_path / "gone"))
    for part in ("dataset", "validation"):
        assert all(Path(file["path"]).parent == trained / "job" for file in plan[part]["data"]["files"])
    hidden = (trained / "job").rename(trained / "hidden")
    try:
        assert_is_its_checkpoint(reopen(run_dir, checkpoint="last", code=tmp_path / "code"))
    finally:
        hidden.rename(trained / "job")


def test_best_last_a_step_and_a_file_name_a_checkpoint(run_dir: Path) -> None:
    best = json.loads((run_dir / "reports/outcome.json").read_text())["best"]["step"]
    assert reopen(run_dir).meta.step == best
    assert reopen(run_dir, checkpoint="last").meta.step == 60
    assert reopen(run_dir, checkpoint="step-00000035.pt").meta.step == 35
    assert reopen(run_dir, checkpoint=str(run_dir / "checkpoints/step-00000040.pt")).meta.step == 40


def test_where_the_best_is_not_kept_best_means_last(run_dir: Path) -> None:
    best = reopen(run_dir).meta.step
    assert best != 60, "else this shows nothing"
    for file in (run_dir / "checkpoints").glob(f"step-{best:08d}.*"):
        file.unlink()
    assert reopen(run_dir).meta.step == 60


def test_a_device_that_is_not_here_is_an_error_that_names_the_cpu(run_dir: Path) -> None:
    with pytest.raises(DeviceError, match="--device cpu"):
        reopen(run_dir, device="cuda:7")
    assert reopen(run_dir, device="cpu").plan.device == "cpu"


# checkpoints that are refused


def test_a_damaged_checkpoint_is_refused_and_no_other_takes_its_place(run_dir: Path) -> None:
    best = json.loads((run_dir / "reports/outcome.json").read_text())["best"]["step"]
    for name, step in (("last", 60), ("best", best), ("30", 30)):
        damage(run_dir / "checkpoints" / checkpoint_name(step))
        with pytest.raises(ResumeRefused, match=r"sha256 of .* is not the one in its meta") as caught:
            reopen(run_dir, checkpoint=name)
        assert caught.value.exit_status == 78
        assert "noisy" not in sys.modules  # verified before any code runs
    assert reopen(run_dir, checkpoint="55").meta.step == 55


def test_a_run_without_a_good_checkpoint_says_so(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step-*.pt"):
        damage(path)
    for name in ("best", "last", "30"):
        with pytest.raises(NoGoodCheckpoint, match="none holds") as caught:
            reopen(run_dir, checkpoint=name)
        assert caught.value.exit_status == 91
    for path in (run_dir / "checkpoints").glob("*.*"):
        path.unlink()
    with pytest.raises(NoGoodCheckpoint, match="it has no checkpoint"):
        reopen(run_dir)


@pytest.mark.parametrize("name", ["7", "step-00000007.pt", "nonsense", "../../x", "/etc/passwd"])
def test_a_checkpoint_that_is_not_there_is_refused_with_what_there_is(run_dir: Path, name: str) -> None:
    with pytest.raises(ResumeRefused):
        reopen(run_dir, checkpoint=name)


def test_a_meta_that_vanishes_while_the_run_goes_on_is_looked_for_again(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is reopened may be training: what was the last is thinned out, and another is."""
    from trn.reopen import checkpoint

    found = checkpoint.find_named

    def thinned(folder: Path, step: int, **more: object) -> object:
        if step == 60:
            for name in (checkpoint_name(60), meta_name(60)):
                (run_dir / "checkpoints" / name).unlink()
        return found(folder, step, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "find_named", thinned)
    assert reopen(run_dir, checkpoint="last").meta.step == 55


def test_a_folder_that_is_no_run_or_has_links_in_it_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused, match="no plan"):
        reopen(tmp_path)
    target = run_dir / "checkpoints/step-00000060.pt"
    target.rename(tmp_path / "real.pt")
    target.symlink_to(tmp_path / "real.pt")
    with pytest.raises(ResumeRefused, match="symbolic link"):
        reopen(run_dir)


# code


def test_other_code_is_refused_before_it_runs_unless_it_is_allowed(
    trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    source = (trained / "job/noisy.py").read_text()
    ran = tmp_path / "ran"
    (code / "noisy.py").write_text(f"open({str(ran)!r}, 'w')\n{source}")
    plan = Plan.read((run_dir / "reports/resolved_config.json").read_bytes(), "plan")
    with pytest.raises(ResumeRefused, match=f"the plan has {plan.trainer.code_sha256[:12]}") as caught:
        reopen(run_dir, code=code)
    assert "--allow-change code" in str(caught.value)
    assert not ran.exists()
    one = reopen(run_dir, checkpoint="25", code=code, allow_change=["code"])
    assert ran.exists()
    assert one.code_sha256 != plan.trainer.code_sha256
    assert_is_its_checkpoint(one)
    with pytest.raises(UsageError, match="'seed' cannot be allowed"):
        reopen(run_dir, allow_change=["seed"])


def test_code_that_cannot_be_foreseen_is_compared_after_its_import(
    trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "noisy.py").write_text("__import__('other')\n" + (trained / "job/noisy.py").read_text())
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ResumeRefused, match="not the code that the run was made with"):
        reopen(run_dir, code=tmp_path)
    assert "other" in sys.modules


@pytest.mark.parametrize("changed", ["here", "own"])
def test_of_several_folders_the_one_with_the_runs_own_code_is_taken(
    trained: Path, run_dir: Path, tmp_path: Path, changed: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    source = (trained / "job/noisy.py").read_text()
    (here / "noisy.py").write_text(source + ("# changed since\n" if changed == "here" else ""))
    own = Path(shutil.copytree(trained / "job", tmp_path / "own"))
    (own / "noisy.py").write_text(source + ("# changed since\n" if changed == "own" else ""))
    rewrite_plan(run_dir, spec_folder=str(own))
    os.chdir(here)
    reopen(run_dir)
    assert sys.modules["noisy"].__file__ == str((own if changed == "here" else here) / "noisy.py")


def test_a_folder_that_anybody_may_write_into_is_not_imported_from_because_a_plan_says_so(
    trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(trained / "job/noisy.py", shared)
    rewrite_plan(run_dir, spec_folder=str(shared))
    shared.chmod(0o777)
    with pytest.raises(ResumeRefused, match="must be yours") as caught:
        reopen(run_dir)
    assert "--code DIR" in str(caught.value)
    shared.chmod(0o755)
    reopen(run_dir)


def test_a_folder_of_another_user_is_not_imported_from_because_a_plan_says_so(
    trained: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Path(shutil.copytree(trained / "job", tmp_path / "theirs"))
    rewrite_plan(run_dir, spec_folder=str(theirs))
    if os.geteuid() == 0:
        os.chown(theirs, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(ResumeRefused, match="must be yours"):
        reopen(run_dir)
    assert "noisy" not in sys.modules
    reopen(run_dir, code=theirs)  # the user says so


def test_nothing_is_imported_from_the_runs_own_folder(trained: Path, run_dir: Path) -> None:
    shutil.copy(trained / "job/noisy.py", run_dir)
    rewrite_plan(run_dir, spec_folder=str(run_dir))
    os.chdir(run_dir)
    with pytest.raises(ResumeRefused, match="there is no module 'noisy'"):
        reopen(run_dir)
    rewrite_plan(run_dir, spec_folder="/no/such/folder")
    with pytest.raises(ResumeRefused, match="/no/such/folder, is not there"):
        reopen(run_dir)


def test_a_current_folder_that_is_gone_does_no_harm(run_dir: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        assert_is_its_checkpoint(reopen(run_dir))
    finally:
        os.chdir(tmp_path)


def test_a_run_of_an_own_loop_has_no_trainer_to_be_reopened_with(run_dir: Path) -> None:
    path = run_dir / "reports/resolved_config.json"
    plan = Plan.read(path.read_bytes(), str(path))
    own = plan.trainer.model_copy(update={"name": OWN_LOOP, "module": "__main__"})
    path.write_bytes(plan.model_copy(update={"trainer": own}).sealed().to_bytes())
    with pytest.raises(ResumeRefused, match="a loop of its own"):
        reopen(run_dir)


def test_code_must_be_a_folder(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        reopen(run_dir, code=tmp_path / "nowhere")
