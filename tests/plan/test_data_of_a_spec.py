"""`python -m trn.plan cache SPEC`: what is refused with the rest of the spec, and what a signal leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.plan.__main__ import main

SPEC = """\
config_version: 1
trainer: lm
dataset: {{parquet_paths: [many.parquet], columns: [id, a, b, c], cache: {cache}}}
seed: 42
device: cpu
precision: none
ddp: false
max_steps: 10
"""


def spec_of(tmp_path: Path, cache: str) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(cache=cache))
    return str(path)


def test_a_cache_at_a_url_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({name: [1, 2] for name in ("id", "a", "b", "c")}), tmp_path / "many.parquet")
    assert main(["cache", spec_of(tmp_path, "s3://b/c")]) == 2
    assert "dataset.cache: expected a folder on this machine, found 's3://b/c'" in capsys.readouterr().err
    assert main(["cache", spec_of(tmp_path, "here"), "--out", "s3://b/c"]) == 2
    assert "--out: expected a path on this machine, found 's3://b/c'" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["many.parquet", "spec.yaml"]


@pytest.mark.slow
def test_a_signal_ends_the_making_of_a_spec_s_cache_and_leaves_nothing(tmp_path: Path) -> None:
    table = pa.table({name: pa.array(range(20_000), pa.int32()) for name in ("id", "a", "b", "c")})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=1, compression="none", write_statistics=False)
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "trn.plan", "cache", spec_of(tmp_path, "out")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not any(one.stat().st_size > 0 for one in out.glob(".*.tmp-*")):
            assert process.poll() is None, "it has ended before it could be stopped"
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        shown, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, shown) == (75, "")
    assert told == "data stopped [preempted]: SIGTERM was received; nothing half made was left.\n"
    assert [one.name for one in out.iterdir()] == [".trn-cache.lock"]
