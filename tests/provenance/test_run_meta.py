"""run_meta.json: what the writer makes is valid, and every change to it is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from support.changes import Change, drop, put
from trn.provenance import Accelerator, Device, TorchFacts, validate_run_meta
from trn.provenance.machine import hardware, runtime
from trn.provenance.run_meta import add_job, build_run_meta, job_entry
from trn.records import pretty_json

HASH = "0123456789abcdef" * 4
Json = dict[str, Any]


GIVEN: Json = {
    "run_id": "exp01",
    "job_id": "job-1",
    "created_at": "2026-03-04T05:06:07.000008Z",
    "plan_fingerprint": HASH[::-1],
    "git": {"sha": "a" * 40, "branch": "main", "dirty": True, "status_porcelain": ["?? x"], "reason": None},
    "dependency_lock": {
        "python_version": "3.11.7",
        "package_count": 60,
        "package_set_sha256": HASH,
        "requirements_files_sha256": {"pyproject.toml": HASH, "src/requirements.txt": None},
    },
    "hardware": hardware(Accelerator(kind="cuda", devices=(Device(0, "A100", 80 << 30, "8.0"),))),
    "runtime": runtime(TorchFacts(version="2.13.0+cpu", threads=2, flags={"cudnn_benchmark": False}))
    | {"python_version": "3.11.7", "versions": {"python": "3.11.7", "numpy": "2.0"}},
    "argv": ["trn", "run", "a b"],
    "cwd": "/specs",
    "dataset_fingerprint": HASH,
    "trainer_name": "lm",
    "code_sha256": HASH,
    "config_sources": [
        {"name": "config_source.yaml", "path": "/specs/train.yaml", "sha256": HASH, "form": "verbatim"},
        {"name": "base_config_source.yaml", "path": "/specs/base.yaml", "sha256": HASH, "form": "masked"},
    ],
    "redacted": ["base_config_source.yaml"],
}


@pytest.fixture
def meta() -> Json:
    """A valid document with two jobs, a dirty tree and a device."""
    value = build_run_meta(**GIVEN)
    return add_job(value, _resume(value))


def _resume(meta: Json, **changed: Any) -> Json:
    return dict(meta["jobs"][0]) | {"job_id": "job-2", "resume": True, "from_step": 100} | changed


SECTIONS = [
    "schema_version", "run_id", "created_at", "plan_fingerprint", "git", "dependency_lock", "preprocess", "hardware",
    "runtime", "command", "dataset", "trainer", "config_sources", "redacted", "jobs",
]  # fmt: skip

KEYS = [
    "git.sha", "git.branch", "git.dirty", "git.status_porcelain", "git.reason", "dependency_lock.python_version",
    "dependency_lock.package_count", "dependency_lock.package_set_sha256", "dependency_lock.requirements_files_sha256",
    "preprocess.kind", "hardware.host", "hardware.accelerator", "hardware.host.hostname", "hardware.host.memory_bytes",
    "hardware.accelerator.devices", "hardware.accelerator.available", "runtime.python_version", "runtime.platform",
    "runtime.python_executable", "runtime.threads", "runtime.deterministic", "runtime.flags", "runtime.torch_version",
    "command.argv", "command.command_str", "command.cwd", "dataset.fingerprint", "trainer.name", "trainer.code_sha256",
    "config_sources.0.sha256", "config_sources.0.form", "jobs.0.job_id", "jobs.1.from_step", "jobs.1.started_at",
    "jobs.1.host", "jobs.1.git_sha",
]  # fmt: skip

# a change, and a word of the complaint
MUTATIONS: list[tuple[Change, str]] = [
    *((drop(name), "missing") for name in (*SECTIONS, *KEYS)),
    *((put(f"{name}.extra", 1), "unknown key") for name in ("git", "hardware", "hardware.host", "runtime", "command")),
    *((put(f"{name}.extra", 1), "unknown key") for name in ("dataset", "trainer", "jobs.0", "config_sources.0")),
    (put("extra", 1), "extra: unknown key"),
    *((put(name, None), name) for name in ("git", "preprocess", "jobs", "redacted", "run_id", "created_at")),
    *((put("schema_version", value), "schema_version") for value in (0, 2, 99, "1", 1.0, True, None)),
    *((put("git.sha", sha), "git.sha") for sha in ("not a sha", "a" * 39, "A" * 40, "a" * 41, "a" * 40 + "\n", "", 1)),
    (put("git.sha", None), "without a reason"),
    (put("git.branch", None), "without a reason"),
    (put("git.dirty", None), "without a reason"),
    (put("git.reason", "because"), "nothing is null"),
    (put("git.reason", ""), "git.reason"),
    (put("git.dirty", False), "do not agree"),
    (put("git.dirty", 1), "git.dirty"),
    (put("git.status_porcelain", []), "do not agree"),
    (put("git.status_porcelain", ["?? x"] * 201), "status_porcelain"),
    (put("git.status_porcelain", "?? x"), "status_porcelain"),
    *(
        (put("dependency_lock.package_set_sha256", value), "package_set_sha256")
        for value in ("z" * 64, "A" * 64, "a" * 63, "a" * 65, None, 1)
    ),
    (put("dependency_lock.package_count", -1), "package_count"),
    (put("dependency_lock.package_count", 1.5), "package_count"),
    (put("dependency_lock.package_count", "60"), "package_count"),
    (put("dependency_lock.python_version", "three"), "python_version"),
    (put("dependency_lock.python_version", "3.1.0"), "different versions of Python"),
    (put("dependency_lock.requirements_files_sha256", {"a.txt": "x"}), "a.txt"),
    (put("dependency_lock.requirements_files_sha256", {"../a.txt": HASH}), "relative path"),
    (put("dependency_lock.requirements_files_sha256", {"/a.txt": HASH}), "relative path"),
    (put("dependency_lock.requirements_files_sha256", []), "requirements_files_sha256"),
    (put("preprocess", {}), "preprocess.kind"),
    (put("preprocess", {"kind": ""}), "preprocess.kind"),
    (put("preprocess", {"kind": 1}), "preprocess.kind"),
    (put("preprocess", "none"), "preprocess"),
    (put("hardware.host.cpu_count", 0), "cpu_count"),
    (put("hardware.host.memory_bytes", "16 GB"), "memory_bytes"),
    (put("hardware.host.hostname", ""), "hostname"),
    (put("hardware.host.hostname", "elsewhere"), "jobs[0].host"),
    (put("hardware.accelerator.available", False), "do not agree"),
    (put("hardware.accelerator.kind", None), "do not agree"),
    (put("hardware.accelerator.devices", []), "do not agree"),
    (put("hardware.accelerator.devices.0.index", -1), "index"),
    (put("runtime.threads", 0), "threads"),
    (put("runtime.threads", True), "threads"),
    (put("runtime.deterministic", "yes"), "deterministic"),
    (put("runtime.flags", {"x": [1]}), "flags"),
    (put("runtime.flags", {"x": 0.5}), "flags"),
    (put("runtime.torch_version", "2.99.0"), "jobs[0].torch_version"),
    (put("runtime.versions", {"python": "2.7.18"}), "different versions of Python"),
    (put("command.argv", []), "argv"),
    (put("command.argv", "trn run"), "argv"),
    (put("command.argv", ["trn", 1]), "argv"),
    (put("command.argv", ["trn", "verify"]), "command_str"),
    (put("command.command_str", "rm -rf x"), "command_str"),
    (put("command.cwd", ""), "cwd"),
    (put("dataset.fingerprint", "x"), "fingerprint"),
    (put("trainer.code_sha256", "0" * 64), "jobs[0].code_sha256"),
    (put("trainer.name", ""), "trainer.name"),
    (put("plan_fingerprint", "0" * 64), "jobs[0].plan_fingerprint"),
    *((put("run_id", value), "run_id") for value in ("../x", "", "a b", "x" * 65, ".x", "jobs", "logs", "x\n", 7)),
    *(
        (put("created_at", value), "created_at")
        for value in (
            "yesterday",
            "2026-03-04",
            "2026-13-04T05:06:07Z",
            "2026-03-04T05:06:07",
            "2026-06-31T00:00:00Z",
            0,
        )
    ),
    (put("created_at", "2026-03-04T05:06:08Z"), "jobs[0].started_at"),
    (put("config_sources", []), "config_sources"),
    (put("config_sources.1.name", "config_source.yaml"), "one name"),
    (put("config_sources.0.name", "../config_source.yaml"), "relative path"),
    (put("config_sources.0.form", "maybe"), "form"),
    (put("config_sources.0.sha256", "F" * 64), "sha256"),
    (put("redacted", [""]), "redacted"),
    (put("redacted", "command.argv"), "redacted"),
    (put("jobs", []), "jobs"),
    (put("jobs", {}), "jobs"),
    (lambda meta: meta["jobs"].pop(0), "jobs[0]"),
    (lambda meta: meta["jobs"].reverse(), "jobs[0]"),
    (lambda meta: meta["jobs"].append(meta["jobs"][1]), "one job_id"),
    (put("jobs.0.resume", True), "from_step"),
    (put("jobs.0.from_step", 5), "from_step"),
    (put("jobs.1.from_step", None), "from_step"),
    (put("jobs.1.from_step", -1), "from_step"),
    (put("jobs.1.resume", False), "from_step"),
    (lambda meta: meta["jobs"][1].update(resume=False, from_step=None), "not a resume"),
    (put("jobs.0.argv", ["trn"]), "jobs[0].argv"),
    (put("jobs.0.git_sha", "0" * 40), "jobs[0].git_sha"),
    (put("jobs.0.package_set_sha256", "0" * 64), "jobs[0].package_set_sha256"),
    (put("jobs.1.job_id", "a/b"), "job_id"),
    (put("jobs.1.started_at", "now"), "started_at"),
]


def test_what_the_writer_makes_is_valid(meta: Json) -> None:
    assert validate_run_meta(pretty_json(meta)) == []
    assert len(MUTATIONS) >= 40


@pytest.mark.parametrize(("change", "complaint"), MUTATIONS)
def test_a_changed_document_is_refused_with_the_place(meta: Json, change: Change, complaint: str) -> None:
    changed = copy.deepcopy(meta)
    change(changed)
    problems = validate_run_meta(pretty_json(changed))
    assert problems
    assert any(complaint in problem for problem in problems), problems
    assert all("\n" not in problem and len(problem) < 500 for problem in problems)


BAD_BYTES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "not strict JSON"),
    (lambda data: data[: len(data) // 2], "not strict JSON"),
    (lambda data: data.replace(b'"kind": "none"', b'"kind": "none", "x": NaN'), "NaN"),
    (lambda data: data.replace(b'"kind": "none"', b'"kind": "none", "x": -Infinity'), "Infinity"),
    (lambda data: data.replace(b'"kind": "none"', b'"kind": "none", "x": 1e999'), "out of range"),
    (lambda data: data.replace(b'"kind": "none"', b'"kind": "none", "kind": "x"'), "duplicate"),
    (lambda data: data.replace(b'"run_id"', b'"run_id": "a", "run_id"', 1), "duplicate"),
    (lambda data: data + b"{}", "not strict JSON"),
    (lambda data: b"\xff" + data, "not strict JSON"),
    (lambda data: b"\0" * len(data), "not strict JSON"),
    (lambda data: b"[" * 100_000, "nested"),
    (lambda data: b"[]", "run_meta"),
    (lambda data: b"null", "run_meta"),
    (lambda data: b'"x"', "run_meta"),
    (lambda data: b"{}", "missing"),
]


@pytest.mark.parametrize(("damage", "complaint"), BAD_BYTES)
def test_damaged_bytes_are_refused(meta: Json, damage: Callable[[bytes], bytes], complaint: str) -> None:
    problems = validate_run_meta(damage(pretty_json(meta)))
    assert any(complaint in problem for problem in problems), problems


def test_all_problems_are_told_at_once_with_place_and_value(meta: Json) -> None:
    meta["git"]["sha"] = "not a sha"
    meta["runtime"]["threads"] = 0
    del meta["command"]["cwd"]
    meta["trainer"]["name"] = 5
    problems = validate_run_meta(pretty_json(meta))
    assert [problem.partition(":")[0] for problem in problems] == [
        "git.sha",
        "runtime.threads",
        "command.cwd",
        "trainer.name",
    ]
    assert problems[0].endswith("found 'not a sha'")


def test_a_complaint_holds_no_control_characters_and_is_short(meta: Json) -> None:
    meta["git"]["sha"] = "\x1b[31m" + "x" * 10_000
    (problem,) = validate_run_meta(pretty_json(meta))
    assert problem.isprintable()
    assert len(problem) < 250


@pytest.mark.parametrize("field", ["sha", "branch"])
def test_what_git_did_not_say_is_null_with_a_reason(meta: Json, field: str) -> None:
    meta["git"] |= {field: None, "reason": "no commits yet"}
    if field == "sha":
        meta["jobs"][0]["git_sha"] = None
    assert validate_run_meta(pretty_json(meta)) == []


def test_a_resume_adds_its_entry_and_loses_none(meta: Json) -> None:
    before = copy.deepcopy(meta)
    longer = add_job(meta, _resume(meta, job_id="job-3", from_step=0, torch_version="2.14.0", host="other"))
    assert meta == before
    assert longer["jobs"][:2] == before["jobs"]
    assert longer["jobs"][2]["from_step"] == 0
    assert {key: value for key, value in longer.items() if key != "jobs"} == {
        key: value for key, value in before.items() if key != "jobs"
    }
    assert validate_run_meta(pretty_json(longer)) == []


@pytest.mark.parametrize("change", [{"job_id": "job-1"}, {"resume": False, "from_step": None}, {"argv": []}, {"x": 1}])
def test_an_entry_that_does_not_belong_is_not_added(meta: Json, change: Json) -> None:
    with pytest.raises(ValueError, match="validation error"):
        add_job(meta, _resume(meta, **{"job_id": "job-3"} | change))


def test_nothing_is_added_to_a_damaged_document(meta: Json) -> None:
    entry = _resume(meta, job_id="job-3")
    with pytest.raises(ValueError, match="validation error"):
        add_job({**meta, "git": {}}, entry)
    with pytest.raises(ValueError, match="validation error"):
        add_job({}, entry)


def test_the_writer_fills_in_what_follows_from_the_rest() -> None:
    made = build_run_meta(**GIVEN)
    assert made["command"]["command_str"] == "trn run 'a b'"
    assert made["preprocess"] == {"kind": "none"}
    shown = build_run_meta(**GIVEN, preprocess={"kind": "resize", "image_size": 640})
    assert shown["preprocess"]["image_size"] == 640


WRONG = [{"run_id": "../x"}, {"plan_fingerprint": "x"}, {"preprocess": {"kind": "a", "x": float("nan")}}, {"argv": []}]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_writer_refuses_what_the_validator_would(wrong: Json) -> None:
    with pytest.raises(ValueError, match="validation error"):
        build_run_meta(**GIVEN | wrong)


def test_an_entry_of_a_first_start_and_of_a_resume_differ_in_from_step(meta: Json) -> None:
    told = {key: meta["jobs"][0][key] for key in ("job_id", "started_at", "argv", "host", "python_version")}
    told |= {key: meta["jobs"][0][key] for key in ("torch_version", "package_set_sha256", "code_sha256")}
    first = job_entry(**told, from_step=None, git=meta["git"], plan_fingerprint=meta["plan_fingerprint"])
    again = job_entry(**told, from_step=0, git=meta["git"], plan_fingerprint=meta["plan_fingerprint"])
    assert first == meta["jobs"][0]
    assert (again["resume"], again["from_step"]) == (True, 0)
    json.dumps(again, allow_nan=False)
