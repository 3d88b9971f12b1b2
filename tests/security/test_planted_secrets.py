"""Secrets planted wherever a job can meet one, real jobs over them, and then every byte below the runs is searched.

Opaque ones stand under telling names in the environment; the others are known by their shape, or stand behind a name
in what is printed. The jobs complete, fail, resume with another spec, are killed and refused, through the real door.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from support.compare import events, outcome
from support.door import until
from support.job import write_job
from trn.jobs import open_store
from trn.records import read_lines

pytestmark = pytest.mark.slow

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJwbGFudGVkIjoiMTIzNCJ9.s5Xb0hV3xw-plantedQm"
PEM_BODY = "MIIEpAIBAAKCAQEAplanted0123456789abcdefghijklmnopqrstuvwx"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----"

ENVIRONMENT = {
    "HF_TOKEN": "environment-planted/0+=",
    "AWS_SECRET_ACCESS_KEY": "environment-planted-1",
    "PGPASSWORD": "environment planted 2",
    "WANDB_API_KEY": "3planted3from3the3environment3",
    "SLURM_JWT": "environment-planted-4",
    "TRN_API_TOKEN": "environment-planted-5",
    "TRAINER_CAPABILITY_TOKEN": 'environment-planted-"6"',
    "DEPLOY_KEY": f"-----BEGIN\n{PEM_BODY[::-1]}\n{PEM_BODY[::-1].swapcase()}\n-----END",
}
# what a trainer has from somewhere else and puts into its own environment
LATE = {"LATE_PASSWORD": "found-later-planted-7", "LATE_API_KEY": "found-later-planted-8"}
SHAPES = {
    "GitHub": "ghp_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ12",
    "GitHub, fine-grained": "github_pat_11PLANTED0abcdefghijkl_mnop",
    "AWS": "AKIAPLANTED7EXAMPLE0",
    "Hugging Face": "hf_plantedABCDEFGHIJKLMNOPQRST",
    "OpenAI": "sk-proj-Planted0123456789AbCdEf",
    "Slack": "xoxb-123456789012-plantedabcdef",
    "GitLab": "glpat-plantedABCDEF12345",
    "Google": "AIzaSyPlanted890abcdefghijklmnopqrstuv",
    "Stripe": "sk_live_51PlantedABCDEFGH",
    "JSON web token": JWT,
    "private key": PEM_BODY,
    "password in a URL": "urlplanted99",
    "signature in a URL": "0a1bplanted2c3d",
    "bearer": "bearerplantedABCDEFGH12345678",
}
PLACES = {
    "file name": "ghp_filenamePlantedABCDEFGHIJKLMN12",
    "branch": "ghp_branchPlantedABCDEFGHIJKLMNOP12",
    "git remote": "remoteplanted12",
    "comment": "hf_commentPlantedABCDEFGHIJKLMNOP",
    "comment of a later spec": "hf_laterPlantedABCDEFGHIJKLMNOPQR",
    "profile that is not chosen": "profile-planted-1",
    "base that is overridden": "hf_basePlantedABCDEFGHIJKLMNOPQRS",
    "printed pair": "printed-planted-1",
    "argument": "argument-planted-1",
    "value in the spec": "spec-planted-1",
    "URL of the data": "dataplanted77",
}
PLANTED = {**ENVIRONMENT, **LATE, **SHAPES, **PLACES}

TRAINER = """
import json, logging, os, sys, warnings
from pathlib import Path

GIVEN = json.loads((Path(__file__).parent / "given.json").read_text())


class Talkative(Noisy):
    def setup(self, ctx):
        os.environ.update(GIVEN["late"])
        for secret in GIVEN["said"]:
            print("I know", secret)
            print(f"and {secret} again", file=sys.stderr, flush=True)
            sys.stdout.write(secret)
            sys.stdout.flush()
            logging.getLogger("talkative").error("logged %s", secret)
        print("password:", GIVEN["pair"])
        print(json.dumps({"api_key": GIVEN["pair"]}))
        print(GIVEN["pem"])
        warnings.warn(GIVEN["said"][0])
        sys.stdout.buffer.write(GIVEN["said"][1].encode() + b"\\n")

    def loss(self, model, batch):
        step = super().loss(model, batch)
        names = {f"m{n}/{secret}": 1.0 for n, secret in enumerate(GIVEN["names"])}
        return Step(step.loss, {**step.metrics, **names}, step.count)

    def sample(self, state, ctx):
        text = "; ".join(GIVEN["said"])
        return {"draw.txt": text, "draw.json": json.dumps(GIVEN["said"]).encode(), "draw.bin": b"\\xff\\x00"}

    def prepare_batch(self, raw_batch, state, ctx):
        if GIVEN["fails_at"] and ctx.step == GIVEN["fails_at"]:
            try:
                raise KeyError(" ".join(GIVEN["said"]))
            except KeyError as error:
                raise ValueError(f"cannot log in with {' and '.join(GIVEN['said'])}") from error
        return super().prepare_batch(raw_batch, state, ctx)
"""


def said() -> list[str]:
    """What the trainer says in full: known values, shapes as they stand in words."""
    whole = {
        "private key": PEM,
        "password in a URL": f"postgres://user:{SHAPES['password in a URL']}@db.example.com/x",
        "signature in a URL": f"https://s3.example.com/b?X-Amz-Signature={SHAPES['signature in a URL']}&X-Amz-Date=9",
        "bearer": f"Authorization: Bearer {SHAPES['bearer']}",
    }
    return [*ENVIRONMENT.values(), *LATE.values(), *(whole.get(name, text) for name, text in SHAPES.items())]


def write_given(folder: Path, *, fails_at: int = 0) -> None:
    """What the trainer of this folder says and does."""
    names = [ENVIRONMENT["HF_TOKEN"], LATE["LATE_API_KEY"], SHAPES["GitHub"], SHAPES["OpenAI"]]
    given = {"late": LATE, "said": said(), "pair": PLACES["printed pair"], "pem": PEM, "names": names}
    (folder / "given.json").write_text(json.dumps({**given, "fails_at": fails_at}))


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], env=environ, check=True, capture_output=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec over a base, in a repository; the trainer beside it cannot keep anything to itself."""
    folder = tmp_path_factory.mktemp("planted") / "job"
    spec = write_job(folder, max_steps=20)
    with (folder / "noisy.py").open("a") as stream:
        stream.write(TRAINER)
    (folder / "base.yaml").write_text(
        f"# {PLACES['comment']} of the base\nowner: {PLACES['base that is overridden']}\nrelease_ref: org/repo\n"
    )
    spec.write_text(
        spec.read_text().replace("noisy:Noisy", "noisy:Talkative")
        + f"extends: base.yaml\nowner: me  # {PLACES['comment']}\nmetric_every: 5\nsample_every: 10\n"
        + f"profiles: {{prod: {{hyperparams: {{api_key: {PLACES['profile that is not chosen']}}}}}}}\n"
    )
    text = spec.read_text()
    spec.write_text(text.replace("sample_every: 50\n", ""))
    write_given(folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    git(folder, "remote", "add", "origin", f"https://user:{PLACES['git remote']}@git.example.com/x.git")
    git(folder, "checkout", "-qb", f"fix-{PLACES['branch']}")
    (folder / PLACES["file name"]).write_text("")
    return spec


@pytest.fixture(scope="module")
def runs_dir(job: Path) -> Path:
    return job.parent.parent / "runs"


def start(runs_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """The real door, with everything that is secret in its environment."""
    environ = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "TRN_RUNS_DIR": str(runs_dir)}
    environ["TRN_NOTE"] = f"see redis://:{SHAPES['password in a URL']}@cache:6379, {ENVIRONMENT['HF_TOKEN']}"
    command = [sys.executable, "-m", "trn.doors.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def trn(runs_dir: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and all that was shown."""
    door = start(runs_dir, *arguments)
    out, err = door.communicate(timeout=120)
    return door.returncode, out + err


def forms(secret: str) -> set[bytes]:
    """The secret as it is, in JSON, in a URL, in a Python repr; of one with several lines, its long lines."""
    lines = {secret, *(line for line in secret.splitlines() if len(line) >= 16)}
    return {
        form.encode() for one in lines for form in (one, json.dumps(one)[1:-1], quote(one, safe=""), repr(one)[1:-1])
    }


def leaks(runs_dir: Path, *shown: str) -> list[str]:
    """Which secret stands where below the runs, by file name, content or what a door has shown."""
    texts = {f"shown {number}": text.encode() for number, text in enumerate(shown)}
    for path in runs_dir.rglob("*"):
        texts[f"name of {path.name}"] = str(path.relative_to(runs_dir)).encode()
        if path.is_file():
            texts[str(path.relative_to(runs_dir))] = path.read_bytes()
    return [
        f"{secret} in {where}"
        for secret, value in PLANTED.items()
        for where, text in texts.items()
        if any(form in text for form in forms(value))
    ]


def test_there_are_at_least_thirty_and_all_are_different() -> None:
    assert len(PLANTED) >= 30
    assert len(set(PLANTED.values())) == len(PLANTED)


def test_a_run_that_completes_and_its_resume_tell_none(job: Path, runs_dir: Path) -> None:
    before = len(list((runs_dir / "logs").rglob("*.log")))
    code, shown = trn(runs_dir, "run", "--config", str(job), "--run-id", "completed")
    assert code == 0, shown
    run_dir = runs_dir / "completed"
    names = set(next(read_lines(run_dir / "reports/train_metrics.jsonl")))
    assert {"m0/***", "m1/***", "m2/***", "m3/***"} <= names
    assert "***" in (run_dir / "samples/step-00000020-draw.txt").read_text()
    assert (run_dir / "samples/step-00000020-draw.bin").read_bytes() == b"\xff\x00"
    assert "***" in (run_dir / "config_source.yaml").read_text()
    assert "I know ***" in shown

    later = job.with_name("later.yaml")
    later.write_text(
        job.read_text().replace("max_steps: 20", "max_steps: 30") + f"# {PLACES['comment of a later spec']}\n"
    )
    arguments = ("--resume", "--allow-change", "max_steps")
    code, again = trn(runs_dir, "run", "--config", str(later), "--run-id", "completed", *arguments)
    assert code == 0, again
    assert "***" in (run_dir / "reports/plans/1.source.yaml").read_text()
    assert (runs_dir / ".trn/jobs.db").is_file()
    assert len(list((runs_dir / "logs").rglob("*.log"))) == before + 2
    assert leaks(runs_dir, shown, again) == []
    code, verified = trn(runs_dir, "verify", "completed")
    assert code == 0, verified


def test_a_run_that_fails_tells_none(job: Path, runs_dir: Path) -> None:
    write_given(job.parent, fails_at=7)
    try:
        code, shown = trn(runs_dir, "run", "--config", str(job), "--run-id", "failed")
    finally:
        write_given(job.parent)
    assert code == 70, shown
    reason = outcome(runs_dir / "failed")["reason"]
    assert "cannot log in with ***" in reason
    assert events(runs_dir / "failed", "failed")[0]["reason"] == reason
    assert "Traceback" in shown
    assert leaks(runs_dir, shown, trn(runs_dir, "status", "failed")[1], trn(runs_dir, "logs", "failed")[1]) == []


def test_a_run_that_is_killed_tells_none(job: Path, runs_dir: Path) -> None:
    longer = ("--set", "max_steps=100000", "--set", "schedule.warmup_steps=2")
    door = start(runs_dir, "run", "--config", str(job), "--run-id", "killed", *longer)
    until((runs_dir / "killed/checkpoints/last.pt").exists, timeout_s=60)
    with open_store(runs_dir) as store:
        (row,) = store.of_run("killed")
    assert row.pid is not None
    os.kill(row.pid, signal.SIGKILL)
    out, err = door.communicate(timeout=60)
    assert door.returncode == 71
    assert leaks(runs_dir, out + err) == []


# where the secret stands, the arguments, the exit status, and what is said of it
REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "an argument": (("--set", f"owner.api_key={PLACES['argument']}"), 2, "owner"),
    "a value of a secret name": (
        ("--set", f"hyperparams.api_key={PLACES['argument']}"),
        2,
        "hyperparams[api_key]: unknown",
    ),
    "a token": (("--set", f"owner={SHAPES['GitHub']}"), 78, "owner looks like a secret"),
    "a value of the environment": (
        ("--set", f"release_ref={ENVIRONMENT['WANDB_API_KEY']}"),
        78,
        "release_ref looks like a secret",
    ),
    "a password in the URL of the data": (
        ("--set", f"dataset.parquet_paths=[https://user:{PLACES['URL of the data']}@example.com/x.parquet]"),
        65,
        "",
    ),
    "a token where a number is due": (("--set", f"max_steps={SHAPES['Hugging Face']}"), 2, "max_steps: expected"),
    "a token that is no override": (("--set", SHAPES["Slack"]), 2, "expected KEY=VALUE"),
    "a token as a profile": (("--profile", SHAPES["AWS"]), 2, "no profile is called"),
    "a token as a device": (("--set", f"device={SHAPES['GitLab']}"), 2, "device: expected"),
    "a token as a file of data": (
        ("--set", "validation.parquet_paths=null", "--set", f"validation.manifest={SHAPES['Stripe']}.json"),
        65,
        "",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_tells_none(job: Path, tmp_path: Path, name: str) -> None:
    arguments, expected, says = REFUSED[name]
    code, shown = trn(tmp_path / "runs", "run", "--config", str(job), "--run-id", "refused", *arguments)
    assert code == expected, shown
    assert says in shown
    assert leaks(tmp_path / "runs", shown) == []
    assert not (tmp_path / "runs/refused").exists()


@pytest.mark.parametrize(
    "line",
    [
        "raise RuntimeError('no such token: {secret}')",
        "raise SystemExit('bye {secret}')",
        "print('{secret}', end=''); import os; os._exit(3)",
    ],
)
def test_a_trainer_that_fails_while_it_is_imported_tells_none(job: Path, tmp_path: Path, line: str) -> None:
    source = job.parent / "impatient.py"
    source.write_text(line.replace("{secret}", SHAPES["Hugging Face"]) + "\n")
    arguments = ("--set", "trainer=impatient:Gone", "--run-id", "impatient")
    code, shown = trn(tmp_path / "runs", "run", "--config", str(job), *arguments)
    assert code in (71, 78), shown
    assert leaks(tmp_path / "runs", shown) == []
