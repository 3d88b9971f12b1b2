"""Several layers, one spec: extends < file < profile < --set < flag."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trn.errors import Problem, SpecError
from trn.spec import Flag, LoadedSpec, load_spec, read_number
from trn.spec.sources import MAX_FILES

Write = Callable[..., Path]
Load = Callable[..., LoadedSpec]
Refuse = Callable[..., list[Problem]]


def test_each_layer_wins_over_the_one_before(write: Write) -> None:
    write("threads: 1\nowner: base\n", "base.yaml")
    child = write("extends: base.yaml\nthreads: 2\nprofiles: {p: {threads: 3}}\n", "child.yaml", good=False)

    def threads(**options: object) -> int:
        return load_spec(child, **options).spec.threads  # type: ignore[arg-type]  # options of load_spec, by name

    assert load_spec(child.parent / "base.yaml").spec.threads == 1
    assert threads() == 2
    assert threads(profile="p") == 3
    assert threads(profile="p", sets=["threads=4"]) == 4
    assert threads(profile="p", sets=["threads=4", "threads=5"]) == 5
    assert threads(profile="p", sets=["threads=5"], flags=[Flag("--threads", "threads", 6)]) == 6
    assert load_spec(child).spec.owner == "base"


def test_a_flag_takes_the_place_of_the_key_that_says_the_same(write: Write, refuse: Refuse) -> None:
    path = write("schedule: {kind: linear, lr_max: 0.5, lr_min: 0.01}\n")
    steps, epochs = Flag("--max-steps", "max_steps", 5), Flag("--epochs", "epochs", 3)
    lr = Flag("--lr", "optimizer.lr", 1)
    by_epochs = load_spec(path, sets=["max_steps=7"], flags=[epochs]).spec
    assert (by_epochs.max_steps, by_epochs.epochs) == (None, 3)
    child = write("extends: spec.yaml\nmax_steps: null\nepochs: 2\n", "child.yaml", good=False)
    by_steps = load_spec(child, flags=[steps]).spec
    assert (by_steps.max_steps, by_steps.epochs) == (5, None)
    assert load_spec(path, flags=[lr]).spec.schedule.lr_max == 1
    without = load_spec(write(name="without.yaml"), flags=[lr]).spec
    assert (without.optimizer.lr, without.schedule.kind) == (1, "constant")
    (problem,) = refuse(path, flags=[steps, epochs])
    assert (problem.file, problem.path) == ("--max-steps", "max_steps")


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("-1", -1), ("1e-3", 1e-3), ("1e6", 1e6), ("012", 12), ("0x1F", 31), (".5", 0.5)]
)
def test_a_flag_reads_numbers_as_a_document_has_them(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "x", "true", "null", "~", "1_000", " 3", "3 4", "[3]", "1e", "no"])
def test_what_is_no_number_stays_text_for_the_schema_to_refuse(text: str) -> None:
    assert read_number(text) == text


def test_mappings_merge_and_lists_replace(write: Write) -> None:
    write("optimizer: {lr: 0.5, eps: 1e-6}\nhyperparams: {a: {b: 1, c: 2}, d: [1, 2]}\n", "base.yaml")
    child = write("extends: base.yaml\noptimizer: {lr: 0.25}\nhyperparams: {a: {c: 3}, d: [9]}\n", "c.yaml", good=False)
    spec = load_spec(child).spec
    assert (spec.optimizer.lr, spec.optimizer.eps) == (0.25, 1e-6)
    assert spec.hyperparams == {"a": {"b": 1, "c": 3}, "d": [9]}


def test_null_in_a_child_takes_a_value_of_its_base_away(write: Write) -> None:
    write("clip_grad_norm: 1.0\ngates: {patience: 2}\nrun_id: a\n", "base.yaml")
    child = write(
        "extends: base.yaml\nclip_grad_norm: null\ngates: null\nrun_id:\nmax_steps: null\nepochs: 2\n",
        "c.yaml",
        good=False,
    )
    spec = load_spec(child).spec
    assert (spec.clip_grad_norm, spec.gates.patience, spec.run_id) == (None, None, None)
    assert (spec.max_steps, spec.epochs) == (None, 2)


def test_a_later_base_wins_over_an_earlier_one(write: Write) -> None:
    write("threads: 1\nowner: a\n", "a.yaml")
    write('{"threads": 2}', "b.json", good=False)
    child = write("extends: [a.yaml, b.json]\n", "c.yaml", good=False)
    spec = load_spec(child).spec
    assert (spec.threads, spec.owner) == (2, "a")


def test_bases_are_found_from_the_file_that_names_them(write: Write, tmp_path: Path) -> None:
    write("", "deep/er/base.yaml")
    write("extends: er/base.yaml\n", "deep/middle.yaml", good=False)
    child = write("extends: ../deep/middle.yaml\n", "specs/c.yaml", good=False)
    loaded = load_spec(child)
    assert loaded.folder == tmp_path / "specs"
    names = [source.path.name for source in loaded.sources]
    assert names == ["c.yaml", "middle.yaml", "base.yaml"]
    assert all(source.path.is_absolute() for source in loaded.sources)


def test_a_base_that_is_reached_twice_is_read_once(write: Write) -> None:
    write("", "root.yaml")
    write("extends: root.yaml\nthreads: 1\n", "a.yaml", good=False)
    write("extends: root.yaml\nthreads: 2\n", "b.yaml", good=False)
    child = write("extends: [a.yaml, b.yaml]\n", "c.yaml", good=False)
    loaded = load_spec(child)
    assert [source.path.name for source in loaded.sources] == ["c.yaml", "a.yaml", "root.yaml", "b.yaml"]
    assert loaded.spec.threads == 2


def test_two_bases_with_one_list_are_refused_with_both_files(write: Write, refuse: Refuse) -> None:
    write("", "a.yaml")
    write("dataset:\n  parquet_paths: [b.parquet]\n", "b.yaml", good=False)
    child = write("extends: [a.yaml, b.yaml]\n", "c.yaml", good=False)
    (problem,) = refuse(child)
    assert problem.path == "dataset.parquet_paths"
    assert f"{child.parent}/a.yaml:3 and {child.parent}/b.yaml:2" in problem.message


def test_a_list_of_the_child_decides_between_those_of_its_bases(write: Write) -> None:
    write("", "a.yaml")
    write("", "b.yaml")
    child = write("extends: [a.yaml, b.yaml]\ndataset: {parquet_paths: [/c.parquet]}\n", "c.yaml", good=False)
    assert load_spec(child).spec.dataset.parquet_paths == ("/c.parquet",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"c": "extends: c.yaml"}, "c.yaml: extends itself, directly"),
        (
            {"c": "extends: a.yaml", "a": "\n\nextends: [b.yaml]", "b": "extends: ./c.yaml"},
            "extends itself, in a circle",
        ),
        ({"c": "extends: nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"c": "extends: [.]"}, "expected a file that ends in"),
        ({"c": "extends: https://a/b.yaml"}, "no such file"),
        ({"c": 'extends: "a\\0.yaml"'}, "a file name cannot hold a NUL"),
        ({"c": "extends: 3"}, "expected a file name or a list of them, found 3"),
        ({"c": "extends: [[a.yaml]]"}, "found a list of 1"),
        ({"c": "extends: {a: b}"}, "found a mapping of 1"),
        ({"c": "extends: ''"}, "found ''"),
        ({"c": "extends: [" + "a.yaml," * 33 + "]", "a": "seed: 1"}, "more than 32 names of files"),
    ],
)
def test_extends_that_cannot_be_followed_is_one_line_at_its_place(
    write: Write, refuse: Refuse, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        write(text + "\n", f"{name}.yaml", good=False)
    (problem,) = refuse(write(files["c"], "c.yaml", good=False))
    assert problem.path == "extends"
    assert message in problem.message
    assert "\0" not in str(problem)


def test_the_circle_is_reported_where_it_closes(write: Write, refuse: Refuse) -> None:
    write("\n\nextends: [c.yaml]\n", "a.yaml", good=False)
    (problem,) = refuse(write("extends: a.yaml\n", "c.yaml", good=False))
    assert problem.file is not None
    assert problem.file.endswith("a.yaml")
    assert problem.line == 3


def test_mistakes_in_a_base_are_reported_in_the_base(write: Write, refuse: Refuse) -> None:
    base = write("thread: 3\n", "base.yaml")
    child = write("extends: base.yaml\nsead: 3\n", "c.yaml", good=False)
    places = {(problem.file, problem.line, problem.path) for problem in refuse(child)}
    assert places == {(str(base), 9, "thread"), (str(child), 2, "sead")}


def test_all_bases_that_cannot_be_read_are_reported_at_once(write: Write, refuse: Refuse) -> None:
    write("a: [", "torn.yaml", good=False)
    child = write("extends:\n  - no.yaml\n  - torn.yaml\n  - nor.yaml\n", "c.yaml", good=False)
    assert [problem.message for problem in refuse(child) if problem.file == str(child)] == [
        f"{child.parent}/no.yaml: no such file",
        f"{child.parent}/nor.yaml: no such file",
    ]
    assert any("torn.yaml:1" in str(problem) for problem in refuse(child))


def test_a_long_chain_of_bases_is_refused(write: Write, refuse: Refuse) -> None:
    for number in range(MAX_FILES + 1):
        write(f"extends: {number + 1}.yaml\n", f"{number}.yaml", good=False)
    problem = refuse(write("extends: 1.yaml\n", "0.yaml", good=False))[0]
    assert f"more than {MAX_FILES} files" in problem.message


def test_relative_paths_belong_to_the_file_that_wrote_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write("validation: {manifest: v.json}\nruns_dir: ../runs\n", "base/base.yaml")
    child = write(
        "extends: ../base/base.yaml\nprofiles: {p: {dataset: {parquet_paths: [p/*.parquet]}}}\n",
        "child/c.yaml",
        good=False,
    )
    spec = load_spec(child).spec
    assert spec.dataset.parquet_paths == (f"{tmp_path}/base/data/*.parquet",)
    assert spec.validation is not None
    assert spec.validation.manifest == f"{tmp_path}/base/v.json"
    assert spec.runs_dir is not None
    assert os.path.normpath(spec.runs_dir) == f"{tmp_path}/runs"
    assert load_spec(child, profile="p").spec.dataset.parquet_paths == (f"{tmp_path}/child/p/*.parquet",)
    set_here = load_spec(
        child, sets=["dataset.parquet_paths=[a.parquet]"], flags=[Flag("--runs-dir", "runs_dir", Path("r"))]
    ).spec
    assert set_here.dataset.parquet_paths == (f"{here}/a.parquet",)
    assert set_here.runs_dir == f"{here}/r"


def test_absolute_paths_and_urls_stay_as_they_are(load: Load) -> None:
    given = ["/data/**/*.parquet", "s3://bucket/a.parquet", "file:///a/b.parquet"]
    spec = load(sets=[f"dataset.parquet_paths=[{', '.join(given)}]"]).spec
    assert spec.dataset.parquet_paths == tuple(given)


def test_a_folder_with_brackets_does_not_become_part_of_a_pattern(write: Write, tmp_path: Path) -> None:
    path = write("", "run[1]/spec.yaml")
    folder = tmp_path / "run[1]" / "data"
    folder.mkdir()
    (folder / "a.parquet").touch()
    import glob

    (pattern,) = load_spec(path).spec.dataset.parquet_paths or ()
    assert glob.glob(pattern) == [str(folder / "a.parquet")]
    assert load_spec(path, sets=[]).spec.dataset.parquet_paths == (pattern,)


def test_a_config_is_found_from_the_current_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("", "specs/spec.yaml")
    monkeypatch.chdir(path.parent.parent)
    loaded = load_spec(Path("specs/spec.yaml"))
    assert loaded.folder == path.parent
    assert loaded.spec.dataset.parquet_paths == (f"{path.parent}/data/*.parquet",)


def test_the_current_folder_may_be_gone(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpecError, match="the current folder is gone"):
        load_spec(path)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("amp: bf16", "bf16"),
        ("use_amp: true", "fp16"),
        ("use_amp: false", "none"),
        ("amp: fp16\nuse_amp: true", "fp16"),
        ("amp: none\nprecision: null", "none"),
        ("use_amp: null\nprecision: bf16", "bf16"),
    ],
)
def test_other_spellings_of_precision_are_read(
    write: Write, without_key: Callable[[str], str], text: str, precision: str
) -> None:
    assert load_spec(write(without_key("precision") + text + "\n", good=False)).spec.precision == precision


def test_a_stronger_layer_wins_in_whichever_spelling(write: Write) -> None:
    write("", "base.yaml")
    child = write("extends: base.yaml\namp: bf16\nprofiles: {p: {use_amp: true}}\n", "c.yaml", good=False)
    assert load_spec(child).spec.precision == "bf16"
    assert load_spec(child, profile="p").spec.precision == "fp16"
    assert load_spec(child, profile="p", sets=["amp=bf16"]).spec.precision == "bf16"
    assert load_spec(child, sets=["amp=fp16"], flags=[Flag("--amp", "precision", "none")]).spec.precision == "none"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("amp: bf16\n", "precision", "expected one precision, found precision: 'none', amp: 'bf16'; keep one of them"),
        ("use_amp: true\n", "precision", "found precision: 'none', use_amp: true"),
        ("use_amp: maybe\n", "use_amp", "expected true (fp16) or false (none), found 'maybe'"),
        ("profiles: {p: {amp: fp16, use_amp: false}}\n", "profiles.p.precision", "expected one precision"),
    ],
)
def test_spellings_that_contradict_each_other_are_refused(
    write: Write, refuse: Refuse, text: str, path: str, message: str
) -> None:
    (problem,) = refuse(write(text))
    assert (problem.path, problem.line) == (path, 9)
    assert message in problem.message


def test_a_profile_is_laid_over_the_file(load: Load) -> None:
    text = "hyperparams: {a: 1}\nprofiles:\n  dev: {max_steps: 10, hyperparams: {b: 2}}\n  prod: {}\n"
    dev = load(text, profile="dev")
    assert (dev.spec.max_steps, dev.spec.hyperparams, dev.profile) == (10, {"a": 1, "b": 2}, "dev")
    assert load(text, profile="prod").spec.max_steps == 1000
    assert load(text).profile is None


def test_profiles_of_a_base_merge_with_those_of_the_file(write: Write) -> None:
    write("profiles: {dev: {threads: 1, owner: a}}\n", "base.yaml")
    child = write("extends: base.yaml\nprofiles: {dev: {threads: 2}}\n", "c.yaml", good=False)
    spec = load_spec(child, profile="dev").spec
    assert (spec.threads, spec.owner) == (2, "a")


@pytest.mark.parametrize(
    ("text", "profile", "path", "message"),
    [
        ("profiles: {dev: {}}\n", "dve", "profiles", "no profile is called 'dve'; did you mean dev?"),
        ("profiles: {dev: {}}\n", "x", "profiles", "there is dev"),
        ("", "dev", "profiles", "this spec has none"),
        (
            "profiles: [dev]\n",
            None,
            "profiles",
            "expected a mapping of at most 32 names to mappings, found a list of 1",
        ),
        ("profiles: {dev: 3}\n", None, "profiles.dev", "expected a mapping (key: value), found 3"),
        ("profiles: {dev: {extends: a.yaml}}\n", "dev", "profiles.dev.extends", "a profile cannot have it"),
        ("profiles: {dev: {profiles: {}}}\n", None, "profiles.dev.profiles", "a profile cannot have it"),
        ("profiles: {dev: {max_stepz: 3}}\n", None, "profiles.dev.max_stepz", "unknown key; did you mean max_steps?"),
        ("profiles: {dev: {max_stepz: 3}}\n", "dev", "max_stepz", "unknown key; did you mean max_steps?"),
        ("profiles: {dev: {ema: {decay: 2}}}\n", None, "profiles.dev.ema.decay", "expected less than 1"),
    ],
)
def test_profiles_are_checked_also_where_none_is_chosen(
    write: Write, refuse: Refuse, text: str, profile: str | None, path: str, message: str
) -> None:
    (problem,) = refuse(write(text), profile=profile)
    assert problem.path == path
    assert message in problem.message


def test_a_profile_that_is_not_chosen_may_lack_what_the_file_has(load: Load) -> None:
    load("schedule: {kind: linear, lr_max: 0.1}\nprofiles: {dev: {schedule: {warmup_steps: 5}, dataset: {}}}\n")


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("seed=7", "seed", 7),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", (0.8, 0.9)),
        ("dataset.columns=[a, b]", "dataset.columns", ("a", "b")),
        ("run_id='7'", "run_id", "7"),
        ("deterministic=warn", "deterministic", "warn"),
        ("validation={manifest: /v.json}", "validation.manifest", "/v.json"),
        ("hyperparams.a.b-c=no", "hyperparams", {"a": {"b-c": "no"}}),
        ("owner=a=b", "owner", "a=b"),
        ("clip_grad_norm=", "clip_grad_norm", None),
    ],
)
def test_sets_are_typed(load: Load, text: str, attribute: str, value: object) -> None:
    got: object = load(sets=[text]).spec
    for name in attribute.split("."):
        got = getattr(got, name)
    assert got == value


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("seed", "", "expected KEY=VALUE such as optimizer.lr=1e-3, found 'seed'"),
        ("=3", "", "expected KEY=VALUE"),
        ("a..b=3", "", "expected KEY=VALUE"),
        ("dataset.parquet_paths[0]=a", "", "expected KEY=VALUE"),
        ("dataset.parquet_paths.0=a", "dataset.parquet_paths.0", "a list is set as a whole"),
        ("seed=[1", "seed", "not YAML"),
        ("owner=a # b", "owner", "found 'a # b'; put it in quotes"),
        ("seed=x", "seed", "expected a whole number, found 'x'"),
        ("seed.x=3", "seed", "expected a whole number, found a mapping of 1"),
        ("sed=3", "sed", "unknown key; did you mean seed?"),
        ("optimizer.learning=3", "optimizer.learning", "unknown key; known here: accumulate, betas"),
        ("extends=a.yaml", "extends", "is read from files only"),
        ("profiles.dev={}", "profiles.dev", "is read from files only"),
        ("hyperparams.a=!!python/name:os.system x", "hyperparams.a", "tags are not read"),
    ],
)
def test_a_set_that_means_nothing_is_refused_by_name(
    write: Write, refuse: Refuse, text: str, path: str, message: str
) -> None:
    (problem,) = refuse(write(), sets=[text])
    assert (problem.file, problem.line, problem.path) == ("--set", None, path)
    assert message in problem.message


def test_bytes_that_are_no_text_are_refused(write: Write, refuse: Refuse, tmp_path: Path) -> None:
    (problem,) = refuse(write(), flags=[Flag("--run-id", "run_id", "a\udcff")])
    assert str(problem) == "--run-id: run_id: text with half of a surrogate pair, which UTF-8 cannot hold"
    (problem,) = refuse(write(), sets=["owner=\udcff"])
    assert problem.message == "the character 0xdcff is not allowed in YAML"
    problems = refuse(write(name=os.fsdecode(b"\xff/spec.yaml")))
    assert [problem.path for problem in problems] == ["dataset.parquet_paths[0]"]
    assert str(problems[0]).isprintable()


def test_the_names_of_profiles_are_shown_without_control_characters(write: Write, refuse: Refuse) -> None:
    path = write('profiles: {"a\\e[31mb": {}}\n')
    for name in ("x", "a\x1b[31mc"):
        (problem,) = refuse(path, profile=name)
        assert str(problem).isprintable()


def test_problems_of_all_layers_come_together(write: Write, refuse: Refuse) -> None:
    write("thread: 1\n", "base.yaml")
    child = write("extends: base.yaml\nowner: 3\n", "c.yaml", good=False)
    problems = refuse(child, sets=["x", "gates.patience=-1"], flags=[Flag("--threads", "threads", "many")])
    assert [(problem.path, os.path.basename(problem.file or "")) for problem in problems] == [
        ("owner", "c.yaml"),
        ("thread", "base.yaml"),
        ("", "--set"),
        ("gates.patience", "--set"),
        ("threads", "--threads"),
    ]
