"""All start-up artifacts: complete, valid, and free of every planted secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from ruamel.yaml import YAML

from trn.errors import VerificationFailed
from trn.provenance import StartupFacts, make_redactor, resumed_run_meta, startup_artifacts, validate_run_meta
from trn.provenance.redact import MASK
from trn.records import from_json

Git = Callable[..., str]

ARTIFACTS = [
    "reports/run_meta.json",
    "reports/run_metadata.json",
    "reports/runtime_env.json",
    "reports/config_resolved.yaml",
    "config_source.yaml",
    "base_config_source.yaml",
]


def _yaml(data: bytes) -> Any:
    return YAML(typ="safe", pure=True).load(data)


def test_every_artifact_is_there_and_says_what_it_should(facts: StartupFacts, repository: Path, git: Git) -> None:
    artifacts = startup_artifacts(facts)
    sha = git("rev-parse", "HEAD", folder=repository)
    assert list(artifacts) == ARTIFACTS
    meta = from_json(artifacts["reports/run_meta.json"])
    assert validate_run_meta(artifacts["reports/run_meta.json"]) == []
    assert (meta["run_id"], meta["created_at"], meta["git"]["sha"]) == ("exp01", facts.started_at, sha)
    assert meta["command"] == {
        "argv": ["trn", "run", "--config", "train.yaml"],
        "command_str": "trn run --config train.yaml",
        "cwd": "/specs",
    }
    assert meta["hardware"]["accelerator"]["devices"][0]["name"] == "A100"
    assert meta["runtime"]["flags"] == {"cudnn_benchmark": False, "matmul_precision": "highest"}
    assert meta["redacted"] == []
    assert [source["form"] for source in meta["config_sources"]] == ["verbatim", "verbatim"]
    assert len(meta["jobs"]) == 1


def test_the_flat_record_names_the_run_the_commit_and_the_files(
    facts: StartupFacts, repository: Path, git: Git
) -> None:
    artifacts = startup_artifacts(facts)
    record = from_json(artifacts["reports/run_metadata.json"])
    assert record["git_sha"] == git("rev-parse", "HEAD", folder=repository)
    assert (record["git_branch"], record["git_dirty"], record["git_reason"]) == ("main", False, None)
    assert (record["run_name"], record["output_dir"], record["dataset_seed"]) == ("exp01", "/runs/exp01", 42)
    assert (record["config"], record["base_config"]) == ("/specs/train.yaml", ["/specs/base.yaml"])
    assert record["launcher"]["kind"] == "local"
    assert "version" in record["upstream"]["torch"]
    assert sorted(record["run_manifest_files"].values()) == sorted(artifacts)


def test_the_plan_and_the_sources_can_be_read_back(facts: StartupFacts, plan: dict[str, Any]) -> None:
    artifacts = startup_artifacts(facts)
    assert _yaml(artifacts["reports/config_resolved.yaml"]) == plan
    assert [artifacts["config_source.yaml"], artifacts["base_config_source.yaml"]] == [
        data for _, data in facts.sources
    ]
    assert from_json(artifacts["reports/runtime_env.json"])["env"] == {"OMP_NUM_THREADS": "2"}


def test_a_run_outside_git_is_recorded_with_the_reason(facts: StartupFacts, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    artifacts = startup_artifacts(replace(facts, code_folder=tmp_path / "elsewhere"))
    assert validate_run_meta(artifacts["reports/run_meta.json"]) == []
    assert from_json(artifacts["reports/run_meta.json"])["git"]["reason"] == "not a git repository"
    assert from_json(artifacts["reports/run_metadata.json"])["git_reason"] == "not a git repository"


def test_text_that_is_not_utf_8_does_not_stop_a_run(facts: StartupFacts) -> None:
    odd = replace(
        facts,
        argv=["trn", "a\udcff", "--set", "x=\ud800"],
        cwd="/specs/\udcfe",
        environ={**facts.environ, "TRN_NOTE\udcff": "\udcff", "X_SECRET": "hidden\udcffvalue1"},
        sources=[("/specs/\udcff.yaml", b"a: 1 # \xff\n")],
    )
    artifacts = startup_artifacts(odd)
    assert artifacts["config_source.yaml"] == b"a: 1 # \xff\n"
    assert validate_run_meta(artifacts["reports/run_meta.json"]) == []
    assert from_json(artifacts["reports/run_meta.json"])["command"]["argv"][1] == "a�"


# where a secret is planted, and the secret; each is found in no artifact
def _planted() -> list[tuple[str, str]]:
    names = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "WANDB_API_KEY", "SLURM_JWT", "TRN_API_TOKEN",
             "TRAINER_CAPABILITY_TOKEN", "GITHUB_TOKEN"]  # fmt: skip
    flags = ["--token", "--hf-token", "--password", "--api-key", "--client-secret"]
    keys = ["hyperparams.api_key", "hyperparams.db_password", "a.b.session_key"]
    spec = ["password", "api_key", "private_key", "authorization", "credentials", "auth_tokens", "cookie"]
    return [
        *((f"environ {name}", f"env-planted-{index}/+=") for index, name in enumerate(names)),
        *((f"flag {name}", f"flag-planted-{index} x") for index, name in enumerate(flags)),
        *((f"flag= {name}", f"flagged-planted-{index}") for index, name in enumerate(flags)),
        *((f"set {name}", f"set-planted-{index},y") for index, name in enumerate(keys)),
        *((f"spec {name}", f"spec-planted-{index}") for index, name in enumerate(spec)),
        *((f"plan {name}", f"plan-planted-{index}") for index, name in enumerate(spec)),
        ("url password", "urlplanted:1"),
        ("url query", "queryplanted1"),
        ("shape", "ghp_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ12"),
        ("comment", "hf_plantedABCDEFGHIJKLMNOP"),
        ("preprocess", "preprocess-planted-1"),
    ]


def _plant(facts: StartupFacts, plan: dict[str, Any]) -> StartupFacts:
    planted = _planted()

    def of(kind: str) -> list[tuple[str, str]]:
        return [(where.split(" ", 1)[1], secret) for where, secret in planted if where.startswith(f"{kind} ")]

    value = dict(planted)
    environ = {**facts.environ, **dict(of("environ")), "TRN_URL": f"redis://u:{value['url password']}@h/0"}
    argv = ["trn", "run", *(part for pair in of("flag") for part in pair), *map("=".join, of("flag="))]
    argv += [part for name, secret in of("set") for part in ("--set", f"{name}={secret}")]
    argv += [f"--data=https://h/x?token={value['url query']}&n=1", value["shape"], f"--note={of('environ')[0][1]}"]
    spec = {name: secret if name != "credentials" else {"user": secret} for name, secret in of("spec")}
    inline = {name: [secret] if name == "auth_tokens" else secret for name, secret in of("plan")}
    source = (
        f"# {value['comment']}\n# also spec-planted-0\nspec: {json.dumps(spec)}\nquoted: {quote(of('environ')[1][1])}\n"
    )
    return replace(
        facts,
        plan={**plan, "trainer": {**plan["trainer"], "params": inline}, "note": f"x {value['shape']}", "url": argv[-3]},
        environ=environ,
        argv=argv,
        sources=[("/specs/train.yaml", source.encode()), (f"/specs/{of('environ')[2][1]}.yaml", b"a: 1\n")],
        preprocess={"kind": "fetch", "api_key": value["preprocess"]},
    )


def test_no_planted_secret_is_in_any_artifact(
    facts: StartupFacts, plan: dict[str, Any], repository: Path, git: Git
) -> None:
    planted = _planted()
    assert len(planted) >= 30
    git("checkout", "-qb", f"fix-{dict(planted)['environ HF_TOKEN']}", folder=repository)
    (repository / dict(planted)["spec api_key"]).write_text("")
    with_secrets = _plant(facts, plan)
    artifacts = startup_artifacts(with_secrets)
    resumed = resumed_run_meta(artifacts["reports/run_meta.json"], replace(with_secrets, job_id="job-2"), 7)
    everything = b"\n".join([*artifacts.values(), resumed])
    for where, secret in planted:
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            assert form.encode() not in everything, where
    assert validate_run_meta(artifacts["reports/run_meta.json"]) == []
    assert validate_run_meta(resumed) == []


def test_where_something_was_masked_is_told(facts: StartupFacts, plan: dict[str, Any]) -> None:
    meta = from_json(startup_artifacts(_plant(facts, plan))["reports/run_meta.json"])
    redacted = meta["redacted"]
    assert "command.argv[3]" in redacted
    assert "command.argv[0]" not in redacted
    assert "reports/config_resolved.yaml:trainer.params.api_key" in redacted
    assert "config_source.yaml" in redacted
    assert "base_config_source.yaml" not in redacted
    assert meta["config_sources"][0]["form"] in ("masked", "rewritten")


def test_the_digest_of_a_source_is_that_of_what_is_stored(facts: StartupFacts, plan: dict[str, Any]) -> None:
    artifacts = startup_artifacts(_plant(facts, plan))
    for source in from_json(artifacts["reports/run_meta.json"])["config_sources"]:
        assert source["sha256"] == hashlib.sha256(artifacts[source["name"]]).hexdigest()


def test_one_redactor_serves_everything_that_the_job_writes(facts: StartupFacts, plan: dict[str, Any]) -> None:
    redactor = make_redactor(_plant(facts, plan))
    assert (
        redactor.text("the server refused spec-planted-1 of plan-planted-0") == f"the server refused {MASK} of {MASK}"
    )


def test_a_resume_adds_one_entry_with_what_it_runs_on(facts: StartupFacts, repository: Path, git: Git) -> None:
    first = startup_artifacts(facts)["reports/run_meta.json"]
    (repository / "new.py").write_text("")
    git("add", "-A", folder=repository)
    git("commit", "-qm", "second", folder=repository)
    later = replace(
        facts,
        job_id="job-2",
        started_at="2026-03-05T00:00:00.000000Z",
        argv=["trn", "resume", "exp01"],
        sources=(),
        torch=replace(facts.torch, version="2.14.0"),
    )
    second = resumed_run_meta(first, later, 120)
    before, after = from_json(first), from_json(second)
    assert validate_run_meta(second) == []
    assert after["jobs"][0] == before["jobs"][0]
    assert after["git"] == before["git"]
    entry = after["jobs"][1]
    assert (entry["job_id"], entry["resume"], entry["from_step"]) == ("job-2", True, 120)
    assert (entry["argv"], entry["torch_version"]) == (["trn", "resume", "exp01"], "2.14.0")
    assert entry["git_sha"] == git("rev-parse", "HEAD", folder=repository) != before["git"]["sha"]


def test_a_damaged_record_or_a_known_job_is_not_extended(facts: StartupFacts) -> None:
    data = startup_artifacts(facts)["reports/run_meta.json"]
    with pytest.raises(VerificationFailed, match="not strict JSON"):
        resumed_run_meta(data[:-20], replace(facts, job_id="job-2"), 1)
    with pytest.raises(VerificationFailed, match="job-1"):
        resumed_run_meta(data, facts, 1)
