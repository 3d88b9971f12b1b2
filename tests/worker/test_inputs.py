"""What a worker does with the inputs of a job, without a run: where they lie then, and under which names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import Served, Way, served, sha256_of
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import DataError
from trn.spec.job_form import Input
from trn.transfer.client import Client
from trn.worker.inputs import fetch_inputs, telling

WEIGHTS = b"weights of step 3"
META = CheckpointMeta(
    file="step-00000003.pt",
    sha256=sha256_of(WEIGHTS),
    size_bytes=len(WEIGHTS),
    step=3,
    epoch=0,
    run_id="other",
    job_id="job",
    plan_fingerprint="ab" * 32,
    created_at="2026-01-01T00:00:00Z",
    metrics={},
    journal={},
    progress={},
    rng=[],
)
FILES = {"own #1 of 100%?.bin": b"one", "sub/zwölf.bin": b"two"}
AT = "/runs/other/checkpoints/step-00000003"


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as kept:
        yield kept


def get(folder: Path, *inputs: Input) -> dict[str, str]:
    client = Client(None, frozenset(), timeout_s=5.0)
    return fetch_inputs(
        inputs, folder / "cache", folder / "own", client, is_stopped=lambda: False, say=lambda line: None
    )


def put_run(server: Served, meta: CheckpointMeta) -> str:
    """The run `other` with a checkpoint; returns the URL of that."""
    for name in ("resolved_config.json", "train_metrics.jsonl", "val_metrics.jsonl"):
        server.put(f"/runs/other/reports/{name}", name.encode())
    server.put(f"{AT}.meta.json", meta.to_bytes())
    return server.put(f"{AT}.pt", WEIGHTS)


def test_a_file_from_elsewhere_keeps_its_ending_and_data_need_none(server: Served, tmp_path: Path) -> None:
    found = get(
        tmp_path,
        Input("base_model", server.put("/some.weights.safetensors?version=2", b"base")),
        Input("dataset/0000", server.put("/a.parquet", b"data")),
    )
    assert found["base_model"] == str(tmp_path / "own/base_model.safetensors")
    assert Path(found["base_model"]).read_bytes() == b"base"
    assert Path(found["dataset/0000"]).read_bytes() == b"data"


def test_progress_is_told_when_there_is_some_every_ten_seconds_and_when_all_is_there() -> None:
    lines: list[str] = []
    now_s = 0.0
    progress = telling(lines.append, lambda: now_s)
    for tick in range(100):  # half a second each
        now_s = tick / 2
        progress(0 if tick < 40 else 1000 * (tick - 40), None if tick < 41 else 59_000)
    assert lines == [
        "trn: inputs: 1,000 of 59,000 bytes",
        "trn: inputs: 21,000 of 59,000 bytes",
        "trn: inputs: 41,000 of 59,000 bytes",
        "trn: inputs: 59,000 of 59,000 bytes",
    ]


def test_a_source_that_does_not_answer_is_named_once(server: Served, tmp_path: Path) -> None:
    url = server.put("/base", b"base", Way(503), Way(503))
    lines: list[str] = []
    client = Client(None, frozenset(), timeout_s=5.0)
    wanted = [Input("base_model", url)]
    fetch_inputs(wanted, tmp_path / "c", tmp_path / "o", client, is_stopped=lambda: False, say=lines.append)
    assert lines == [
        f"trn: input base_model ({url}): it answered 503 Service Unavailable; it is asked again",
        "trn: inputs: 4 of 4 bytes",
    ]


def test_what_is_on_this_disk_stays_where_it_is_also_as_a_url(tmp_path: Path) -> None:
    file, folder = tmp_path / "base model.bin", tmp_path / "folder.d"
    file.write_bytes(b"base")
    folder.mkdir()
    for source, path in (
        (str(file), file),
        (f"file://{tmp_path}/base%20model.bin", file),
        (str(folder), folder),
        (f"file://{folder}", folder),
    ):
        assert get(tmp_path, Input("base_model", source)) == {"base_model": str(path)}
    assert file.stat().st_nlink == 1
    assert not (tmp_path / "own").exists()


def test_a_checkpoint_comes_with_all_of_its_run_whatever_its_files_are_called(server: Served, tmp_path: Path) -> None:
    files = [{"path": name, "sha256": sha256_of(body), "size_bytes": len(body)} for name, body in FILES.items()]
    url = put_run(server, CheckpointMeta(**{**vars(META), "files": files}))
    server.put(f"{AT}.files/own%20%231%20of%20100%25%3F.bin", FILES["own #1 of 100%?.bin"])
    server.put(f"{AT}.files/sub/zw%C3%B6lf.bin", FILES["sub/zwölf.bin"])
    for _ in range(2):  # the second time over what the first has laid out
        found = get(tmp_path, Input("resume_checkpoint", url, META.sha256, META.size_bytes))
        origin = tmp_path / "own/origin"
        assert found == {"resume_checkpoint": str(origin / "checkpoints" / META.file)}
        for name, body in FILES.items():
            assert (origin / "checkpoints/step-00000003.files" / name).read_bytes() == body
        assert sorted(path.name for path in (origin / "reports").iterdir()) == [
            "resolved_config.json",
            "train_metrics.jsonl",
            "val_metrics.jsonl",
        ]


@pytest.mark.parametrize(
    ("sha256", "size_bytes", "told"),
    [("cd" * 32, None, "expected sha256 cdcd"), (None, 1, f"expected 1 bytes, and its meta says {len(WEIGHTS)}")],
)
def test_a_checkpoint_that_is_not_what_the_job_says_is_refused_before_it_is_fetched(
    server: Served, tmp_path: Path, sha256: str | None, size_bytes: int | None, told: str
) -> None:
    url = put_run(server, META)
    with pytest.raises(DataError, match=told):
        get(tmp_path, Input("resume_checkpoint", url, sha256, size_bytes))
    assert server.ranges(f"{AT}.pt") == []


@pytest.mark.parametrize("body", [b"", b"{}", META.to_bytes().replace(b"other", b"wrong"), b"[" * 100_000])
def test_a_meta_that_is_none_is_refused(server: Served, tmp_path: Path, body: bytes) -> None:
    url = put_run(server, META)
    server.put(f"{AT}.meta.json", body)
    with pytest.raises(DataError, match=r"inputs\.resume_checkpoint: the meta of the checkpoint is none") as told:
        get(tmp_path, Input("resume_checkpoint", url))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_checkpoint_on_this_disk_is_checked_and_stays_there(tmp_path: Path) -> None:
    path = tmp_path / "a run/checkpoints/step-00000003.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    for source in (str(path), f"file://{tmp_path}/a%20run/checkpoints/step-00000003.pt"):
        assert get(tmp_path, Input("resume_checkpoint", source, META.sha256)) == {"resume_checkpoint": str(path)}
        with pytest.raises(DataError, match="expected the sha256"):
            get(tmp_path, Input("resume_checkpoint", source, "cd" * 32))


def test_what_is_missing_of_a_run_is_named(server: Served, tmp_path: Path) -> None:
    url = put_run(server, META)
    server.always("/runs/other/reports/resolved_config.json", Way(404))
    with pytest.raises(DataError, match=r"input resume_checkpoint/resolved_config\.json .*answered 404"):
        get(tmp_path, Input("resume_checkpoint", url))
