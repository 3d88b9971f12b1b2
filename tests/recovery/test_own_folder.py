"""A trainer's own folder beside a checkpoint: given back exactly, whole or absent at every operation, or rejected."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

from support.compare import assert_identical, events, outcome
from support.forkserver import OPERATIONS, ForkServer
from support.job import command, write_job
from support.with_hooks import write_hooked
from trn.checkpoint.discover import find_named, find_newest_good
from trn.checkpoint.folder import folder_name
from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.doors.cli import main
from trn.doors.schemas import schema_of
from trn.errors import STATUS, ResumeRefused
from trn.records import canonical_json, new_job_id, read_json, sha256_json
from trn.reopen import reopen
from trn.spec.plan_model import Plan
from trn.testing import assert_same_end
from trn.testing.workspace import kept_settings
from trn.verify import verify_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hooked(tmp_path_factory.mktemp("hooked"))


@pytest.fixture(scope="module")
def hooked_oracle(server: ForkServer, hooked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooked-oracle")
    assert server.run(command(hooked, folder, "oracle"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "oracle"


def plan_of(run_dir: Path) -> Plan:
    return Plan.read((run_dir / "reports/resolved_config.json").read_bytes(), "plan")


def metas(run_dir: Path) -> list[CheckpointMeta]:
    folder = run_dir / "checkpoints"
    return [CheckpointMeta.read(folder / meta_name(step)) for step in reversed(listed_steps(folder))]


def problems(run_dir: Path) -> list[str]:
    return [f"{finding.what}: {finding.problem}" for finding in verify_run(run_dir) if finding.problem]


def copy_of(oracle: Path, tmp_path: Path) -> Path:
    """The run under its own name in another folder, as a run that was killed after its last checkpoint."""
    shutil.copytree(oracle, tmp_path / "oracle")
    (tmp_path / "oracle/reports/outcome.json").unlink()
    return tmp_path / "oracle"


def test_the_meta_lists_every_file_and_what_the_hook_returned(hooked_oracle: Path) -> None:
    found, schema = metas(hooked_oracle), Draft202012Validator(schema_of("checkpoint"))
    assert {4, 8, 12, 16, 20, 24} <= {meta.step for meta in found}
    for meta in found:
        assert meta.files is not None
        assert meta.hook == {"primary_path": "adapter/head.pt", "rank": 4}
        assert [one["path"] for one in meta.files] == ["adapter/head.pt", "note.txt"]
        schema.validate(read_json(hooked_oracle / "checkpoints" / meta_name(meta.step)))
        folder = hooked_oracle / "checkpoints" / folder_name(meta.step)
        assert sorted(path.name for path in folder.iterdir()) == ["adapter", "note.txt"], "empty folders are not kept"
        assert (folder / "note.txt").read_text() == f"step {meta.step}, {meta.step == 24}\n"
        assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}
    assert problems(hooked_oracle) == []


@pytest.mark.timeout(300)
def test_killed_anywhere_the_folder_is_whole_or_absent_and_the_end_is_the_same(
    server: ForkServer, tmp_path: Path
) -> None:
    spec = write_hooked(tmp_path / "job", steps=6, keep=2, more="profiles: {}")
    spec.write_text(spec.read_text().replace("checkpoint_every: 4", "checkpoint_every: 2"))
    log = tmp_path / "log"
    assert server.run(command(spec, tmp_path, "oracle"), log, fault="op=any,n=99999,do=kill") == 0, log.read_text()
    last = int(log.read_text().rpartition(OPERATIONS)[2])
    reached = set()
    stride = 1 if os.environ.get("TRN_EVERY_OPERATION") == "all" else 13
    for number, n in enumerate(range(40, last + 1, stride)):
        folder, do = tmp_path / str(n), ("kill", "kill", "eio")[number % 3]
        folder.mkdir()
        log = folder / "log"
        code = server.run(command(spec, folder, "run"), log, fault=f"op=any,n={n},do={do}")
        assert code == -signal.SIGKILL if do == "kill" else code in (0, STATUS["io_error"].exit), log.read_text()
        if (folder / "run").exists():
            announced = {one["step"] for one in events(folder / "run", "checkpoint")}
            found = find_newest_good(folder / "run", lineage=plan_of(folder / "run").lineage, announced=announced)
            reached |= {0 if found.meta is None else found.meta.step}
            assert not found.rejected, "a meta without its folder whole"
        assert server.run(command(spec, folder, "run"), log) == 0, log.read_text()
        assert_identical(folder / "run", tmp_path / "oracle")
        assert problems(folder / "run") == []
        names = os.listdir(folder / "run/checkpoints")
        assert not [name for name in names if name.startswith(".")], "leftovers are cleaned"
        kept = {folder_name(step) for step in listed_steps(folder / "run/checkpoints")}
        assert {name for name in names if name.endswith(".files")} == kept
    assert reached >= {2, 4}


def _flip(folder: Path) -> None:
    path = folder / "adapter/head.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flip, "the sha256 of step-00000024.files/adapter/head.pt"),
    "a truncated file": (lambda folder: os.truncate(folder / "note.txt", 3), "note.txt has 3 bytes, its meta says"),
    "a missing file": (lambda folder: (folder / "note.txt").unlink(), "step-00000024.files/note.txt is gone"),
    "an extra file": (lambda folder: (folder / "adapter/x.py").write_text("1"), "has 'adapter/x.py', which its meta"),
    "an extra folder": (lambda folder: (folder / "more").mkdir(), "has 'more', which its meta does not list"),
    "no folder": (shutil.rmtree, "step-00000024.files is gone"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_rejected_and_the_one_before_is_taken(
    server: ForkServer, hooked: Path, hooked_oracle: Path, tmp_path: Path, damage: str
) -> None:
    run_dir = copy_of(hooked_oracle, tmp_path)
    do, says = DAMAGE[damage]
    do(run_dir / "checkpoints/step-00000024.files")
    assert any(says in one for one in problems(run_dir))
    if damage == "a flipped bit":  # one of them goes all the way
        log = tmp_path / "log"
        assert server.run(command(hooked, tmp_path, "oracle"), log) == 0, log.read_text()
        (rejected,) = events(run_dir, "checkpoint_rejected")
        assert (rejected["file"], says in rejected["reason"]) == ("step-00000024.pt", True)
        assert events(run_dir, "resumed")[-1]["from_step"] == 20
        kept = next(run_dir.glob("checkpoints/abandoned-*/step-00000024.files"))
        assert (kept / "note.txt").exists(), "it is set aside with its checkpoint"
        shutil.rmtree(kept.parent)
        assert [meta.files for meta in metas(run_dir)] == [meta.files for meta in metas(hooked_oracle)]
    else:
        found = find_newest_good(run_dir, lineage=plan_of(run_dir).lineage, announced={24})
        assert found.meta is not None
        assert (found.meta.step, len(found.rejected)) == (20, 1)
        with pytest.raises(ResumeRefused, match="does not hold"):
            find_named(run_dir, 24, lineage=plan_of(run_dir).lineage)


def test_a_folder_that_no_meta_lists_is_found(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_job(tmp_path / "job", max_steps=2, checkpoint_every=1), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    for step in (2, 9):
        (tmp_path / "run/checkpoints" / folder_name(step)).mkdir()
    assert problems(tmp_path / "run") == ["checkpoints/step-00000002.files: the meta of its step lists no files"]
    assert any("step-00000009.files: not committed" in finding.what for finding in verify_run(tmp_path / "run"))


def test_a_symbolic_link_in_the_folder_is_never_followed(hooked_oracle: Path, tmp_path: Path) -> None:
    run_dir = copy_of(hooked_oracle, tmp_path)
    note = run_dir / "checkpoints/step-00000024.files/note.txt"
    note.rename(tmp_path / "note.txt")
    note.symlink_to(tmp_path / "note.txt")
    found = find_newest_good(run_dir, lineage=plan_of(run_dir).lineage, announced={24})
    assert found.meta is not None
    assert found.meta.step == 20


@pytest.mark.parametrize("path", ["../note.txt", "/etc/passwd", "a//b", "a\nb", ""])
def test_a_meta_whose_files_lead_out_of_the_folder_is_refused(hooked_oracle: Path, tmp_path: Path, path: str) -> None:
    run_dir = copy_of(hooked_oracle, tmp_path)
    meta = run_dir / "checkpoints" / meta_name(24)
    value = read_json(meta)
    del value["meta_sha256"]
    value["files"][0]["path"] = path
    meta.write_bytes(canonical_json(value | {"meta_sha256": sha256_json(value)}))
    found = find_newest_good(run_dir, lineage=plan_of(run_dir).lineage, announced={24})
    assert found.meta is not None
    assert found.meta.step == 20


MISCHIEF = {
    "raises": ("raise ValueError('no\\nroom')", 70, "ValueError: no room"),
    "a full disk": ("raise OSError(28, 'No space left on device')", 74, "save_checkpoint cannot write"),
    "a symbolic link": ("os.symlink('/etc/passwd', output_dir / 'link')", 70, "wrote a symbolic link: 'link'"),
    "a link to a folder": ("os.symlink('/etc', output_dir / 'etc')", 70, "wrote a symbolic link: 'etc'"),
    "a hard link": ("os.link(output_dir / 'note.txt', output_dir / 'again')", 70, "has a second name elsewhere"),
    "a pipe": ("os.mkfifo(output_dir / 'pipe')", 70, "wrote something that is no file: 'pipe'"),
    "a bad name": ("(output_dir / 'a\\nb').touch()", 70, "whose name is no plain text"),
    "a long name": ("(output_dir / ('ü' * 101)).touch()", 70, "whose name is no plain text of at most 200 bytes"),
    "too deep": ("os.makedirs(output_dir / '/'.join('d' * 20))", 70, "more than 15 folders in each other"),
    "nothing": ("import shutil; [shutil.rmtree(output_dir), output_dir.mkdir()]", 70, "wrote no file"),
    "no folder": ("import shutil; shutil.rmtree(output_dir)", 70, "removed output_dir"),
    "a file left open": (
        "import builtins; builtins.kept = open(output_dir / 'kept', 'w'); builtins.kept.write('a')",
        70,
        "it left 'kept' open",
    ),
    "another path": ("pass", 70, "primary_path is 'nowhere', which it did not write"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    "killed, with links": (
        "os.symlink('/etc', output_dir / 'etc'); os.mkfifo(output_dir / 'p'); os.kill(os.getpid(), signal.SIGKILL)",
        -signal.SIGKILL,
        "",
    ),
    "killed, read-only": (
        "os.chmod(output_dir / 'adapter', 0o500); os.kill(os.getpid(), signal.SIGKILL)",
        -signal.SIGKILL,
        "",
    ),
}


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_a_hook_that_misbehaves_ends_the_run_in_one_line_and_the_last_good_checkpoint_stands(
    server: ForkServer, hooked: Path, hooked_oracle: Path, tmp_path: Path, mischief: str
) -> None:
    how, code, says = MISCHIEF[mischief]
    refuses, log = hooked.with_name("refuses"), tmp_path / "log"
    refuses.write_text(f"16 {how}")
    try:
        assert server.run(command(hooked, tmp_path, "oracle"), log) == code, log.read_text()
    finally:
        refuses.unlink()
    run_dir = tmp_path / "oracle"
    before = [meta.step for meta in metas(hooked_oracle) if meta.step < 16]
    # a kill may come while the one before is still being written
    assert [meta.step for meta in metas(run_dir)] in ([before] if code > 0 else [before, before[:-1]])
    if code > 0:
        ended = outcome(run_dir)
        assert ended["exit_code"] == code
        assert says in ended["reason"], ended["reason"]
        assert "\n" not in ended["reason"]
        assert not [name for name in os.listdir(run_dir / "checkpoints") if name.startswith(".")]
    assert server.run(command(hooked, tmp_path, "oracle"), log) == 0, log.read_text()
    assert_identical(run_dir, hooked_oracle)
    assert problems(run_dir) == []


def test_a_fork_takes_the_folder_with_it_and_ends_the_same(
    server: ForkServer, hooked_oracle: Path, tmp_path: Path
) -> None:
    options = ["--run-dir", str(hooked_oracle), "--run-id", "new", "--runs-dir", str(tmp_path), "--checkpoint", "12"]
    log = tmp_path / "log"
    assert server.run(["--job-id", new_job_id(), *options], log) == 0, log.read_text()
    assert metas(tmp_path / "new")[-1].files == metas(hooked_oracle)[-1].files
    copied = tmp_path / "new/checkpoints/step-00000012.files/note.txt"
    assert copied.read_text() == "step 12, False\n"
    assert copied.stat().st_nlink == 1
    assert problems(tmp_path / "new") == []


def test_going_back_sets_the_later_folders_aside(
    server: ForkServer, hooked_oracle: Path, hooked: Path, tmp_path: Path
) -> None:
    run_dir = copy_of(hooked_oracle, tmp_path)
    log = tmp_path / "log"
    options = ("--resume", "--checkpoint", "16")
    assert server.run(command(hooked, tmp_path, "oracle", *options), log) == 0, log.read_text()
    aside = next(run_dir.glob("checkpoints/abandoned-*"))
    assert {folder_name(20), folder_name(24)} <= {path.name for path in aside.iterdir()}
    assert_same_end(run_dir, hooked_oracle)


def test_gc_frees_folders_with_their_checkpoints_and_what_a_killed_hook_left(
    hooked_oracle: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "oracle"
    shutil.copytree(hooked_oracle, run_dir)
    folder = run_dir / "checkpoints"
    best = read_json(run_dir / "reports/outcome.json")["best"]["step"]
    for name in (".step-00000028.files.tmp-1-0", ".trash-step-00000002.files", "step-00000003.files"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "file").write_text("left")
    (folder / "abandoned-job-1" / "step-00000008.files").mkdir(parents=True)
    (folder / "abandoned-job-1" / "step-00000008.files" / "x").touch()
    (folder / "not-ours.files").mkdir()
    assert main(["gc", "--yes", "oracle", "--runs-dir", str(tmp_path)]) == 0
    steps = set(listed_steps(folder))
    assert steps == {24, 23 if 23 in steps else sorted({meta.step for meta in metas(hooked_oracle)})[-2], best}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {*map(folder_name, steps), "not-ours.files"}
    assert problems(run_dir) == []


def test_a_run_that_is_opened_again_has_its_own_files_back(hooked_oracle: Path) -> None:
    with kept_settings():
        opened = reopen(hooked_oracle, checkpoint="last")
    sys.modules.pop("hooked")
    kept = torch.load(hooked_oracle / "checkpoints/step-00000024.files/adapter/head.pt", weights_only=True)
    assert torch.equal(opened.state["head"].weight, kept["weight"])


def test_a_checkpoint_with_a_folder_needs_a_trainer_that_can_load_it(
    server: ForkServer, hooked_oracle: Path, hooked: Path, tmp_path: Path
) -> None:
    run_dir = copy_of(hooked_oracle, tmp_path)
    shutil.copytree(hooked.parent, tmp_path / "job")
    trainer = tmp_path / "job/hooked.py"
    trainer.write_text(
        trainer.read_text().replace("def save_checkpoint", "def a").replace("def load_checkpoint", "def b")
    )
    before = sorted(path.name for path in run_dir.rglob("*"))
    log = tmp_path / "log"
    options = ("--resume", "--checkpoint", "16", "--allow-change", "code")
    assert server.run(command(tmp_path / "job/spec.yaml", tmp_path, "oracle", *options), log) == 78
    assert (
        "was saved by a trainer with `save_checkpoint`, and 'hooked:Hooked' has no `load_checkpoint`" in log.read_text()
    )
    assert sorted(path.name for path in run_dir.rglob("*")) == before


def test_neither_debug_nor_what_the_hook_returns_tells_a_secret(server: ForkServer, tmp_path: Path) -> None:
    secret = "ghp_" + "Ab1" * 12
    spec, log = write_hooked(tmp_path / "job", steps=4), tmp_path / "log"
    trainer = spec.parent / "hooked.py"
    made = '"ghp_" + "Ab1" * 12'
    text = trainer.read_text().replace('{"first": ', f'{{"said": {made}, "first": ')
    trainer.write_text(text.replace('"rank": 4}', f'"rank": 4, "said": {made}}}'))
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert [meta.hook["said"] for meta in metas(tmp_path / "run") if meta.hook] == ["***"]
    assert {one["debug"]["said"] for one in events(tmp_path / "run", "metric")} == {"***"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
