"""A job file: what it becomes, what is filled in, what the worker is told, and what is refused, line by line."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trn.errors import Problem, SpecError
from trn.spec import Flag, Input, JobForm, WorkerKeys, load_spec, read_job_file
from trn.spec.defaulted import DEFAULTED_KEYS
from trn.spec.job_keys import INPUT_KEYS, UPLOAD_KEYS, WORKER_KEYS
from trn.spec.job_tree import MOVED
from trn.spec.nodes import MAX_NODES
from trn.spec.sources import MAX_BYTES

BATCH = {"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]}
SMALL = {
    "trainer_api_version": "v1",
    "run_id": "run_123",
    "trainer": "my_pkg.train:MyTrainer",
    "max_steps": 3,
    "mock_batches": [BATCH, BATCH, BATCH],
}
FROM_FILES = {
    "trainer_api_version": "v1",
    "run_id": "run_123",
    "trainer": "my_pkg.train:MyTrainer",
    "max_steps": 1000,
    "metric_every": 10,
    "checkpoint_every": 200,
    "sample_every": 200,
    "owner": "org_id",
    "release_ref": "org/repo:latest",
    "hyperparams": {"learning_rate": 0.0001},
    "dataset": {
        "parquet_paths": ["/data/train.parquet"],
        "batch_size": 16,
        "readahead": 3,
        "columns": ["image_ref", "caption"],
    },
}
FILLED = {"seed": 0, "device": "auto", "precision": "none", "ddp": False, "dataset.end": "stop"}
FILLED_FOR_BATCHES = {**FILLED, "dataset.batch_size": 2, "dataset.shuffle": False}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a job, one key a line, and `more` over it; a key of Ellipsis is left out."""

    def write_one(job: dict[str, Any] | str = SMALL, **more: Any) -> Path:
        path = tmp_path / "job.json"
        if isinstance(job, dict):
            job = {key: value for key, value in {**job, **more}.items() if value is not ...}
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in job.items())
            job = f"{{\n{lines}\n}}"
        path.write_text(job)
        return path

    return write_one


def problems_of(read: Callable[..., Any], path: Path, **options: Any) -> dict[str, Problem]:
    """The problems that `read` refuses the file with, by path; each is one line that names the file."""
    with pytest.raises(SpecError) as refused:
        read(path, **options)
    problems = refused.value.problems
    assert all(str(one).isprintable() and len(str(one)) < 500 for one in problems)
    assert len({one.path for one in problems}) == len(problems)
    return {one.path: one for one in problems}


def only(read: Callable[..., Any], path: Path, where: str, **options: Any) -> str:
    """The message of the one problem there is, which stands at `where`."""
    problems = problems_of(read, path, **options)
    assert list(problems) == [where]
    return problems[where].message


# what it becomes


def test_a_job_file_is_a_spec_with_every_key_in_its_place(write: Write) -> None:
    loaded = load_spec(write(FROM_FILES, max_runtime_seconds=90.5, validation={"parquet_paths": ["v.parquet"]}))
    spec = loaded.spec
    assert (spec.run_id, spec.trainer, spec.max_steps) == ("run_123", "my_pkg.train:MyTrainer", 1000)
    assert (spec.metric_every, spec.checkpoint_every, spec.sample_every) == (10, 200, 200)
    assert (spec.owner, spec.release_ref, spec.hyperparams) == ("org_id", "org/repo:latest", {"learning_rate": 0.0001})
    assert spec.dataset.parquet_paths == ("/data/train.parquet",)
    assert (spec.dataset.batch_size, spec.dataset.readahead, spec.dataset.columns) == (16, 3, ("image_ref", "caption"))
    assert spec.limits.max_runtime_seconds == 90.5
    assert spec.validation is not None
    assert spec.validation.parquet_paths == (str(loaded.folder / "v.parquet"),)


def test_what_the_form_leaves_open_is_filled_in_and_told(write: Write) -> None:
    loaded = load_spec(write(FROM_FILES))
    assert (loaded.spec.seed, loaded.spec.device, loaded.spec.precision) == (0, "auto", "none")
    assert (loaded.spec.ddp, loaded.spec.dataset.end) == (False, "stop")
    assert loaded.defaulted == FILLED


def test_what_anybody_says_is_not_called_filled_in(write: Write) -> None:
    loaded = load_spec(
        write(FROM_FILES, seed=7, use_amp=True),
        sets=["dataset.end=cycle"],
        flags=[Flag("--cpu-only", "device", "cpu")],
        defaults={"device": "cuda", "ddp": True},
    )
    assert loaded.defaulted == {}
    assert (loaded.spec.seed, loaded.spec.precision, loaded.spec.dataset.end) == (7, "fp16", "cycle")
    assert (loaded.spec.device, loaded.spec.ddp) == ("cpu", True)


def test_an_ordinary_spec_has_nothing_filled_in(tmp_path: Path) -> None:
    ordinary = {**FROM_FILES, "config_version": 1, "seed": 1, "device": "cpu", "precision": "none", "ddp": False}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(ordinary))
    assert load_spec(path).defaulted == {}
    assert load_spec(ordinary).spec.seed == 1


@pytest.mark.parametrize("more", [{"config_version": 1}, {"profiles": {}}, {"trainer_api_version": ...}])
def test_a_document_that_is_not_quite_a_job_gets_nothing_filled_in(write: Write, more: dict[str, Any]) -> None:
    problems = problems_of(load_spec, write(FROM_FILES, **more))
    assert "required, never defaulted" in problems["seed"].message


def test_a_document_that_extends_another_is_no_job(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text('{"owner": "somebody"}')
    assert "seed" in problems_of(load_spec, write(FROM_FILES, extends="base.json"))
    assert only(read_job_file, write(FROM_FILES, extends="base.json"), "extends") == "a job file extends no other"


def test_a_job_in_another_format_is_no_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(SMALL))
    assert "config_version" in problems_of(load_spec, path)
    assert only(read_job_file, path, "") == "expected a job file that ends in .json"


def test_a_mapping_in_the_form_of_a_job_is_one(tmp_path: Path) -> None:
    assert load_spec(SMALL).defaulted == FILLED_FOR_BATCHES


def test_batches_in_the_job_are_data_in_their_own_order(write: Write) -> None:
    loaded = load_spec(write())
    assert loaded.spec.dataset.mock_batches == (BATCH, BATCH, BATCH)
    assert (loaded.spec.dataset.batch_size, loaded.spec.dataset.shuffle) == (2, False)
    assert loaded.defaulted == FILLED_FOR_BATCHES
    shuffled = load_spec(write(dataset={"shuffle": True, "batch_size": 2, "columns": ["x"]}))
    assert shuffled.spec.dataset.shuffle
    assert shuffled.defaulted == FILLED


def test_the_settled_document_is_a_spec_that_tells_what_was_filled_in(write: Write, tmp_path: Path) -> None:
    form = read_job_file(write(max_runtime_seconds=5))
    assert form.document["seed"] == 0
    assert form.document["dataset"] == {"mock_batches": [BATCH] * 3, "batch_size": 2, "end": "stop", "shuffle": False}
    assert form.document["limits"] == {"max_runtime_seconds": 5}
    settled = tmp_path / "settled.json"
    settled.write_text(json.dumps(form.to_json_document()))
    loaded, direct = load_spec(settled), load_spec(form.path)
    assert loaded.spec == direct.spec
    assert loaded.defaulted == direct.defaulted == form.defaulted == FILLED_FOR_BATCHES
    assert load_spec(settled, sets=["seed=5"]).defaulted.keys() == FILLED_FOR_BATCHES.keys() - {"seed"}
    assert load_spec(form.document).defaulted == {}


def test_only_what_a_job_may_leave_open_can_be_filled_in(write: Write) -> None:
    ordinary = {**read_job_file(write()).to_json_document(), "defaulted": {"max_steps": 9, "seed": 0}}
    assert "max_steps" not in load_spec({**ordinary, "defaulted": {"seed": 0}}).defaulted
    with pytest.raises(SpecError, match=r"defaulted\.max_steps: this key cannot be filled in"):
        load_spec(ordinary)
    with pytest.raises(SpecError, match="defaulted: expected a mapping of keys to values, found 3"):
        load_spec({**ordinary, "defaulted": 3})


# what the worker is told


def test_the_workers_keys_stand_beside_the_document(write: Write, tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    form = read_job_file(
        write(
            FROM_FILES,
            dataset={"batch_size": 4},
            inputs={
                "resume_checkpoint_url": "file:///mnt/step-3.pt",
                "dataset_parquet_refs": ["shards/a.parquet", {"url": "https://host/b.parquet", "sha256": digest}],
                "base_model_ref": {"ref": "s3://bucket/model.bin", "size_bytes": 12},
            },
            uploads={"metrics_url": "https://host/metrics", "sample_url": "", "checkpoint_url": None},
            resume_from_latest=True,
            orchestrated=True,
            cancel_file_path="cancel",
            resume_checkpoint_path="",
        )
    )
    assert form.worker == WorkerKeys(
        inputs=(
            Input("base_model", "s3://bucket/model.bin", None, 12),
            Input("dataset/0000", str(tmp_path / "shards/a.parquet")),
            Input("dataset/0001", "https://host/b.parquet", digest),
            Input("resume_checkpoint", "file:///mnt/step-3.pt"),
        ),
        uploads={"metrics": "https://host/metrics"},
        resume_from_latest=True,
        orchestrated=True,
        cancel_file_path=str(tmp_path / "cancel"),
    )
    assert form.document["dataset"] == {"batch_size": 4, "end": "stop"}
    assert not {"inputs", "uploads", "orchestrated", "cancel_file_path", "resume_from_latest"} & set(form.document)


def test_a_container_of_azure_is_no_name_of_somebody(write: Write) -> None:
    url = "abfs://container@account.dfs.core.windows.net/model.bin"
    assert read_job_file(write(inputs={"base_model_url": url})).worker.inputs == (Input("base_model", url),)


def test_a_job_whose_data_are_fetched_becomes_a_spec_when_they_are_there(write: Write) -> None:
    form = read_job_file(write(FROM_FILES, dataset=..., inputs={"dataset_parquet_urls": ["https://host/a.parquet"]}))
    with pytest.raises(SpecError, match="dataset: expected parquet_paths or manifest, found neither"):
        load_spec(form.to_json_document())
    settled = form.to_json_document()
    settled["dataset"] = {**settled["dataset"], "parquet_paths": ["/cache/a.parquet"]}
    loaded = load_spec(settled)
    assert loaded.spec.dataset.parquet_paths == ("/cache/a.parquet",)
    assert loaded.defaulted == FILLED


def test_whoever_trains_without_a_worker_is_told_of_what_nobody_would_obey(write: Write) -> None:
    keys = {
        "inputs": {"dataset_parquet_urls": ["https://host/a"]},
        "uploads": {"metrics_url": "https://host"},
        "orchestrated": True,
        "cancel_file_path": "c",
        "resume_from_latest": True,
        "resume_checkpoint_path": "step-00000003.pt",
    }
    problems = problems_of(load_spec, write(FROM_FILES, dataset=..., **keys))
    assert set(problems) == set(keys)
    assert all("start the job with `trn worker`" in one.message and one.line for one in problems.values())


def test_keys_of_the_worker_that_say_nothing_are_no_reason_to_refuse(write: Write) -> None:
    silent = {
        "inputs": {"dataset_parquet_urls": [], "base_model_ref": None},
        "uploads": {"metrics_url": ""},
        "orchestrated": False,
        "cancel_file_path": "",
        "resume_from_latest": False,
        "resume_checkpoint_path": None,
    }
    assert load_spec(write(**silent)).spec.max_steps == 3
    assert read_job_file(write(**silent)).worker == WorkerKeys()


def test_the_trainer_may_come_from_the_environment_and_must_agree_with_it(write: Write) -> None:
    plugin = "my_pkg.train:MyTrainer"
    for named in ({"trainer": ...}, {"trainer": None}, {"trainer": ""}, {}):
        form = read_job_file(write(**named), plugin=plugin)
        assert form.document["trainer"] == plugin
        assert "trainer" not in form.defaulted
    assert read_job_file(write(), plugin="").document["trainer"] == plugin
    message = only(read_job_file, write(), "trainer", plugin="other:Trainer")
    assert message.startswith("expected 'other:Trainer', as TRAINER_PLUGIN says, found 'my_pkg.train:MyTrainer'")
    (problem,) = problems_of(read_job_file, write(trainer=...), plugin="a b").values()
    assert str(problem).startswith("TRAINER_PLUGIN: trainer: expected the name of an entry point")


def test_a_job_that_nobody_names_a_trainer_for_is_for_the_worker_to_refuse(write: Write) -> None:
    assert "trainer" not in read_job_file(write(trainer=...)).document
    assert set(problems_of(read_job_file, write(trainer=..., max_steps=-1))) == {"trainer", "max_steps"}
    assert set(problems_of(load_spec, write(trainer=...))) == {"trainer"}


# docs/job_file.md


def test_the_examples_of_the_page_are_taken_and_it_explains_every_key(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs/job_file.md").read_text()
    whole, batches = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert json.loads(whole) == FROM_FILES | {"dataset": {**FROM_FILES["dataset"], "batch_size": 32, "readahead": 2}}
    assert read_job_file(write(whole)).defaulted == FILLED
    mock = json.loads(f"{{{batches}}}")
    assert load_spec(write(**mock)).defaulted == FILLED_FOR_BATCHES
    for key in (*MOVED, *WORKER_KEYS, *DEFAULTED_KEYS):
        assert f"| `{key}` |" in page, key
    for key in (*INPUT_KEYS, *UPLOAD_KEYS):
        assert f"`{key}`" in page, key
    assert f"{MAX_BYTES >> 10} KiB and {MAX_NODES:,} keys and values" in page


def test_the_example_of_the_page_about_inputs_is_taken(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs/inputs.md").read_text()
    example = "".join(re.findall(r"^    (.*\n)", page.partition("All inputs")[0].partition("names")[2], re.MULTILINE))
    example, count = re.subn(r'"9f86d0\.\.\."', f'"{"9f86d0" + "0" * 58}"', example)
    inputs = read_job_file(write(FROM_FILES, dataset=..., **json.loads(f"{{{example}}}"))).worker.inputs
    assert count == 1
    assert [one.name for one in inputs] == ["base_model", "dataset/0000", "dataset/0001"]


# what is refused

MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"trainer_api_version": "v99"}, "trainer_api_version", "expected v1, found 'v99'"),
    ({"trainer_api_version": None}, "trainer_api_version", "expected v1, found null"),
    ({"trainer_api_version": 1}, "trainer_api_version", "expected v1, found 1"),
    ({"capability_token": "s3cr3t"}, "capability_token", "a token stands in no file that is written down"),
    ({"mx_steps": 3}, "mx_steps", "unknown key; did you mean max_steps?"),
    ({"mock_batch": []}, "mock_batch", "unknown key; did you mean mock_batches?"),
    ({"upload": {}}, "upload", "unknown key; did you mean uploads?"),
    ({"defaulted": {}}, "defaulted", "unknown key"),
    ({"max_steps": 0}, "max_steps", "expected at least 1, found 0"),
    ({"max_steps": ...}, "max_steps", "a budget is required"),
    ({"max_runtime_seconds": -1}, "max_runtime_seconds", "expected at least 0, found -1"),
    ({"max_runtime_seconds": 5, "limits": {"max_runtime_seconds": 6}}, "max_runtime_seconds", "expected one value"),
    ({"limits": 3, "max_runtime_seconds": 5}, "limits", "expected a mapping"),
    ({"seed": None}, "seed", "expected a whole number, found null"),
    ({"run_id": "../x"}, "run_id", "1 to 64 of A-Z a-z 0-9"),
    ({"dataset": {"parquet_paths": ["a"]}}, "mock_batches", "found parquet_paths and mock_batches"),
    ({"dataset": []}, "dataset", "expected a mapping"),
    ({"mock_batches": ...}, "dataset", "required"),
    ({"mock_batches": None}, "dataset", "required"),
    ({"mock_batches": []}, "mock_batches", "expected at least one batch with at least one column"),
    ({"mock_batches": {}}, "mock_batches", "expected a list"),
    ({"mock_batches": [3]}, "mock_batches[0]", "expected a mapping"),
    ({"mock_batches": [{}]}, "mock_batches", "expected at least one batch with at least one column"),
    ({"mock_batches": [{"x": []}]}, "mock_batches[0]", "at least one row"),
    ({"mock_batches": [{"x": 3}]}, "mock_batches[0]", "expected a list of rows for each column"),
    (
        {"mock_batches": [BATCH, {"x": [1, 2]}]},
        "mock_batches[1]",
        "expected the columns of the first batch: 'y' is mis",
    ),
    ({"mock_batches": [{"x": [1]}, {"z": [1], "x": [1]}]}, "mock_batches[1]", "'z' is not in the first one"),
    ({"mock_batches": [{"x": [1, 2], "y": [1]}]}, "mock_batches[0].y", "expected 2 rows, as the first batch has, fo"),
    ({"mock_batches": [{"x": [1]}, {"x": [1, 2]}]}, "mock_batches[1].x", "expected 1 rows, as the first batch has"),
    ({"mock_batches": [{"x": [1]}, {"x": 1}]}, "mock_batches[1].x", "expected a list of rows, found 1"),
    ({"dataset": {"batch_size": 4}}, "mock_batches[0]", "expected 4 rows, as dataset.batch_size says, found 2"),
    ({"mock_batches": [{"x": [[1.0], [1.0, 2.0]]}]}, "mock_batches[0].x[1]", "expected a list of 1 numbers, as befor"),
    ({"mock_batches": [{"x": [[1], 2]}]}, "mock_batches[0].x[1]", "found a whole number"),
    ({"mock_batches": [{"x": [1]}, {"x": ["a"]}]}, "mock_batches[1].x[0]", "expected a whole number, as before it, f"),
    ({"mock_batches": [{"x": [True, 1]}]}, "mock_batches[0].x[1]", "expected true or false, as before it, found a wh"),
    ({"mock_batches": [{"x": [1, None]}]}, "mock_batches[0].x[1]", "found null"),
    ({"mock_batches": [{"x": [{"a": 1}]}]}, "mock_batches[0].x[0]", "found a mapping of 1"),
    ({"mock_batches": [{"x": [[]]}]}, "mock_batches[0].x[0]", "at least one value, found an empty list"),
    ({"mock_batches": [{"x": [2**63]}]}, "mock_batches[0].x[0]", "a whole number of 64 bits"),
    ({"mock_batches": [{"x": [float("nan")]}]}, "mock_batches[0].x[0]", "a finite number that float32 holds, found n"),
    ({"mock_batches": [{"x": [1.0, float("inf")]}]}, "mock_batches[0].x[1]", "a finite number that float32 holds"),
    ({"mock_batches": [{"x": [1e39]}]}, "mock_batches[0].x[0]", "a finite number that float32 holds, found 1e+39"),
    ({"mock_batches": [{"x": [0.5, 2**24 + 1]}]}, "mock_batches[0].x[1]", "a whole number up to 16777216"),
]
"""More of a job, where it is refused, and with what."""


@pytest.mark.parametrize(("more", "where", "message"), MISTAKES, ids=[str(one[0])[:50] for one in MISTAKES])
def test_a_mistake_is_refused_at_its_line_as_a_spec_and_as_a_job(
    write: Write, more: dict[str, Any], where: str, message: str
) -> None:
    path = write(**more)
    for read in (load_spec, read_job_file):
        problems = problems_of(read, path)
        assert message in problems[where].message
        assert problems[where].file == str(path)
        assert "s3cr3t" not in "".join(map(str, problems.values()))
        if where.partition(".")[0].partition("[")[0] in more and more.get(where) is not ...:
            assert problems[where].line is not None


WORKER_MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"orchestrated": "yes"}, "orchestrated", "expected true or false, found 'yes'"),
    ({"resume_from_latest": 1}, "resume_from_latest", "expected true or false, found 1"),
    ({"cancel_file_path": 3}, "cancel_file_path", "expected a path, found 3"),
    ({"cancel_file_path": False}, "cancel_file_path", "expected a path, found false"),
    ({"resume_checkpoint_path": "a\0b"}, "resume_checkpoint_path", "expected a path"),
    ({"uploads": []}, "uploads", "expected a mapping"),
    ({"uploads": {"metric_url": "https://h"}}, "uploads.metric_url", "unknown key; did you mean metrics_url?"),
    ({"uploads": {"metrics_url": "/tmp/x"}}, "uploads.metrics_url", "expected a URL such as https://host/file"),
    ({"uploads": {"metrics_url": "ftp://h/x"}}, "uploads.metrics_url", "of https or http, found 'ftp://h/x'"),
    ({"uploads": {"metrics_url": 5}}, "uploads.metrics_url", "expected a URL, found 5"),
    ({"uploads": {"metrics_url": "https://a:hidden@h/"}}, "uploads.metrics_url", "what stands before the @ looks"),
    ({"uploads": {"sample_url": "https://h/?token=hidden"}}, "uploads.sample_url", "and token= looks like one"),
    ({"inputs": {"token": "hidden"}}, "inputs.token", "unknown key; known here: base_model_ref"),
    ({"inputs": {"base_model_url": "model.bin"}}, "inputs.base_model_url", "expected a URL such as"),
    ({"inputs": {"base_model_url": "https://[hidden"}}, "inputs.base_model_url", "expected a URL such as"),
    ({"inputs": {"base_model_url": "https://h/x?a=1;token=hidden"}}, "inputs.base_model_url", "and token= looks like"),
    ({"inputs": {"base_model_url": "abfs://a:hidden@account/x"}}, "inputs.base_model_url", "what stands before the @"),
    ({"uploads": {"terminal_url": "https:///hidden"}}, "uploads.terminal_url", "expected a URL such as"),
    ({"uploads": {"terminal_url": "https://h:hidden/"}}, "uploads.terminal_url", "expected a URL such as"),
    ({"uploads": {"terminal_url": "https://h:99999/"}}, "uploads.terminal_url", "expected a URL such as"),
    ({"uploads": {"terminal_url": "https://h/#part"}}, "uploads.terminal_url", "expected a URL such as"),
    ({"uploads": {"terminal_url": "https://h\u00e4/"}}, "uploads.terminal_url", "expected a URL such as"),
    ({"inputs": {"base_model_ref": "a\nb"}}, "inputs.base_model_ref", "found control characters"),
    ({"inputs": {"base_model_ref": ["a"]}}, "inputs.base_model_ref", "expected a path or a URL, found a list of 1"),
    (
        {"inputs": {"base_model_ref": "a", "base_model_url": "https://h"}},
        "inputs.base_model_url",
        "found base_model_ref too",
    ),
    ({"inputs": {"base_model_ref": {"sha256": "0" * 64}}}, "inputs.base_model_ref", "ref and url, found neither"),
    ({"inputs": {"base_model_ref": {"ref": "a", "url": "b"}}}, "inputs.base_model_ref", "ref and url, found both"),
    ({"inputs": {"base_model_ref": {"ref": "a", "sha": 1}}}, "inputs.base_model_ref.sha", "did you mean sha256?"),
    ({"inputs": {"base_model_ref": {"ref": "a", "sha256": "A" * 64}}}, "inputs.base_model_ref.sha256", "64 of 0-9"),
    ({"inputs": {"base_model_ref": {"ref": "a", "size_bytes": -1}}}, "inputs.base_model_ref.size_bytes", "from 0 on"),
    (
        {"inputs": {"base_model_ref": {"url": "https://h?sig=hidden"}}},
        "inputs.base_model_ref.url",
        "sig= looks like one",
    ),
    ({"inputs": {"dataset_parquet_refs": ["a"]}}, "dataset.mock_batches", "found inputs and dataset.mock_batches"),
    (
        {"resume_checkpoint_path": "a", "inputs": {"resume_checkpoint_ref": "b"}},
        "resume_checkpoint_path",
        "found inputs.resume_checkpoint too",
    ),
]


@pytest.mark.parametrize(("more", "where", "message"), WORKER_MISTAKES, ids=[str(one[0]) for one in WORKER_MISTAKES])
def test_a_mistake_in_the_workers_keys_is_refused_at_its_line(
    write: Write, more: dict[str, Any], where: str, message: str
) -> None:
    problems = problems_of(read_job_file, write(**more))
    where = where.replace("dataset.mock_batches", "mock_batches")
    assert message in problems[where].message
    assert problems[where].line is not None
    assert "hidden" not in "".join(map(str, problems.values()))


def test_data_to_fetch_are_a_list_and_each_is_named_once(write: Write) -> None:
    def refused(data: Any) -> dict[str, Problem]:
        return problems_of(read_job_file, write(mock_batches=..., inputs={"dataset_parquet_urls": data}))

    assert "expected a list such as" in refused("https://h/a")["inputs.dataset_parquet_urls"].message
    twice = refused(["https://h/a", "https://h/b", "https://h/a"])
    assert twice["inputs.dataset_parquet_urls[2]"].message == "the same as number 0; name it once"
    assert "expected a URL" in refused(["https://h/a", ""])["inputs.dataset_parquet_urls[1]"].message


def test_all_mistakes_of_a_job_come_out_together(write: Write) -> None:
    path = write(trainer_api_version="v99", max_runtime_seconds=-1, uploads={"x": 1}, orchestrated=2, sede=1, epochs=1)
    assert set(problems_of(read_job_file, path)) == {
        *("trainer_api_version", "max_runtime_seconds", "uploads.x", "orchestrated", "sede", "max_steps"),
    }


@pytest.mark.parametrize(
    ("job", "where", "message"),
    [
        ({**SMALL, "run_id": ...}, "run_id", "required in a job file"),
        ({**SMALL, "run_id": None}, "run_id", "required in a job file"),
        ({**SMALL, "trainer_api_version": ...}, "trainer_api_version", 'write "trainer_api_version": "v1"'),
        ({**SMALL, "config_version": 1}, "config_version", "this is an ordinary spec, for `trn run`"),
        ({**SMALL, "profiles": {}}, "profiles", "a job file has no profiles"),
        ("[]", "", "expected a mapping"),
        ("", "", "the file is empty"),
        ("{", "", "not JSON"),
    ],
)
def test_what_is_no_job_at_all_is_refused(write: Write, job: dict[str, Any] | str, where: str, message: str) -> None:
    assert message in only(read_job_file, write(job), where)


def test_a_job_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert only(read_job_file, tmp_path / "job.json", "") == "no such file"


SMALL_TEXT = json.dumps(SMALL)
HOSTILE = {
    "a million batches": SMALL_TEXT.replace("[{", "[" + '{"x":[1]},' * 1_000_000 + "{", 1),
    "many batches": json.dumps({**SMALL, "mock_batches": [{"x": [1]}] * 20_000}),
    "as many as there may be": json.dumps({**SMALL, "mock_batches": [{"x": [1, "a"]}] * 1_900}),
    "many columns": json.dumps({**SMALL, "mock_batches": [{f"c{n}": [1, "a"] for n in range(3_000)}]}),
    "a thousand levels": SMALL_TEXT.replace("[{", "[" * 1000 + "1" + "]" * 1000 + ', "z": [{', 1),
    "as deep as there may be": SMALL_TEXT.replace("[0, 1]", "[" * 28 + "1" + "]" * 28, 1),
    "many keys": json.dumps({**SMALL, **{f"key{n}": n for n in range(9_000)}}),
    "many inputs": json.dumps({**SMALL, "inputs": {f"dataset_{n}": "x" for n in range(4_500)}}),
    "many bad inputs": json.dumps({**SMALL, "inputs": {"dataset_parquet_urls": ["x"] * 9_000}}),
    "nan": json.dumps({**SMALL, "mock_batches": [{"x": [float("nan")] * 9_000}]}),
    "a huge number": SMALL_TEXT.replace("[0, 1]", f"[{'9' * 100_000}, 1]", 1),
    "a long text": json.dumps({**SMALL, "mock_batches": [{"x": ["a" * 200_000, 1]}]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_job_is_refused_within_a_second(write: Write, name: str) -> None:
    path = write(HOSTILE[name])
    for read in (load_spec, read_job_file):
        before = time.process_time()
        problems = problems_of(read, path)
        assert time.process_time() - before < 1.0
        assert 0 < len(problems) <= 101


SCALARS = st.sampled_from(
    [None, True, 0, -1, 3, 2**70, 0.5, float("nan"), "", "v1", "a b", "https://h/x?token=y", "file:/x", "\0", "\x1b"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "ref", "url", "sha256", *INPUT_KEYS]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*MOVED, *WORKER_KEYS, "dataset", "limits", "trainer", "run_id", "trainer_api_version", "sedd"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.dictionaries(KEYS, VALUES, max_size=4))
def test_no_value_of_a_job_escapes_as_another_error(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**SMALL, **more}))
    for read in (load_spec, read_job_file):
        assert said_by(read, path).isprintable()


def said_by(read: Callable[..., Any], path: Path) -> str:
    """What a job is refused with, "" for one that is taken; any other error is the test's failure."""
    try:
        read(path)
    except SpecError as error:
        return "".join(map(str, error.problems))
    return ""


def test_as_many_batches_as_fit_are_read_within_a_second(write: Write) -> None:
    path = write(mock_batches=[{"x": [[0.5] * 8] * 4, "y": [1] * 4} for _ in range(210)], dataset={"batch_size": 4})
    before = time.process_time()
    form: JobForm = read_job_file(path)
    assert load_spec(path).spec.dataset.batch_size == 4
    assert time.process_time() - before < 1.0
    assert len(form.document["dataset"]["mock_batches"]) == 210
