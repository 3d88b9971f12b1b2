"""Hostile and mistaken inputs of `trn run`, as files in a folder and a command line beside them.

Each has an exit status, how many lines it is refused with, and a piece of one of these lines. `made` builds the files
of one and returns the folder in which the command is to be run.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["GOOD", "HOSTILE", "Hostile", "made"]

Make = Callable[[Path], object]
Content = str | bytes | Make

GOOD = """\
config_version: 1
trainer: lm
dataset: {parquet_paths: [data/*.parquet]}
seed: 42
device: cpu
precision: none
ddp: false
max_steps: 1000
"""

SIZE = 200_000


@dataclass(frozen=True)
class Hostile:
    """`files` by name, `spec.yaml` being the config unless `arguments` name another one with --config."""

    says: str
    files: Mapping[str, Content] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    code: int = 2
    lines: int = 1
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def argv(self) -> list[str]:
        config = () if "--config" in self.arguments else ("--config", "spec.yaml")
        return ["run", *config, *self.arguments]


def made(one: Hostile, folder: Path) -> Path:
    """The folder with the files of `one` in it; a good spec.yaml where it has none of its own."""
    folder.mkdir()
    for name, content in ({"spec.yaml": GOOD} | dict(one.files)).items():
        path = folder / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _spec(says: str, more: str, *, lines: int = 1) -> Hostile:
    """A good spec with something behind it."""
    return Hostile(says, {"spec.yaml": GOOD + more}, lines=lines)


def _changed(says: str, key: str, value: str, *, lines: int = 1) -> Hostile:
    """A good spec in which one key has another value."""
    kept = [line for line in GOOD.splitlines(keepends=True) if not line.startswith(f"{key}:")]
    return Hostile(says, {"spec.yaml": f"{key}: {value}\n" + "".join(kept)}, lines=lines)


def _whole(says: str, content: Content, name: str = "spec.yaml", *, lines: int = 1) -> Hostile:
    """Another document altogether."""
    return Hostile(says, {name: content}, ("--config", name), lines=lines)


def _set(says: str, text: str, *, lines: int = 1) -> Hostile:
    return Hostile(says, arguments=("--set", text), lines=lines)


def _run_id(run_id: str) -> Hostile:
    return Hostile("cannot be the id of a run", arguments=(f"--run-id={run_id}",))


def _json(**changes: object) -> str:
    good = {
        "config_version": 1,
        "trainer": "lm",
        "dataset": {"parquet_paths": ["data/*.parquet"]},
        "seed": 42,
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "max_steps": 1000,
    }
    return json.dumps(good | changes)


def _laughs() -> str:
    lines = ["a0: &a0 [" + ",".join(["1"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 20)]
    return "\n".join(lines)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


HOSTILE: dict[str, Hostile] = {
    # bombs
    "yaml: a billion laughs": _whole("more than 1000 aliases, counted as often as they are expanded", _laughs()),
    "yaml: an alias of itself": _spec("has no anchor that ends before it", "hyperparams: &a {a: *a}\n"),
    "yaml: many aliases": _spec("more than 1000 aliases", "hyperparams: {a: &a 1, b: [" + "*a," * 5000 + "]}\n"),
    "yaml: deep lists": _whole("nested deeper than 32", "a: " + "[" * SIZE),
    "yaml: deep mappings": _whole("nested deeper than 32", "\n".join(" " * n + "a:" for n in range(500))),
    "yaml: too many values": _whole("more than 10000 keys and values", "a: [" + "1," * 60_000 + "]"),
    "yaml: too large": _whole("256 KiB, here it has more", GOOD + "#" * (300 << 10)),
    "yaml: a long tag": _whole("256 characters without a space", "a: !" + "a" * SIZE + " x"),
    "json: deep lists": _whole("nested deeper than 32", "[" * SIZE, "spec.json"),
    "json: deep objects": _whole("nested deeper than 32", '{"a":' * 30_000 + "1" + "}" * 30_000, "spec.json"),
    "toml: a deep key": _whole("nested deeper than 32", ".".join(["a"] * 50_000) + " = 1", "spec.toml"),
    "set: a bomb": _set("nested deeper than 32", "hyperparams=" + "[" * 50_000),
    # the same key twice, merged keys
    "yaml: a key twice": _spec("the key stands here twice (first in line 4)", "seed: 1\n"),
    "yaml: a nested key twice": _spec("hyperparams.a: the key stands here twice", "hyperparams: {a: 1, a: 2}\n"),
    "yaml: a merge key": _spec("merge keys are not read", "hyperparams: {<<: {a: 1}}\n"),
    "json: a key twice": _whole("the key stands here twice", _json()[:-1] + ', "seed": 1}', "spec.json"),
    "toml: a key twice": _whole("not TOML: Cannot overwrite a value", "seed = 1\nseed = 2\n", "spec.toml"),
    # code in data
    "yaml: a Python object": _spec(
        "tags are not read, found '!!python/object/apply:os.system'",
        "hyperparams: !!python/object/apply:os.system ['touch ran']\n",
    ),
    "yaml: a Python name": _spec("tags are not read", "hyperparams: {a: !!python/name:os.system }\n"),
    "yaml: a tag of its own": _spec("tags are not read, found '!Evil'", "hyperparams: !Evil {a: 1}\n"),
    "yaml: binary": _spec("tags are not read, found '!!binary'", "owner: !!binary aGk=\n"),
    "trainer: a path": _changed("module:Class, found '../evil.py:Evil'", "trainer", "../evil.py:Evil"),
    "trainer: a call": _changed("module:Class, found \"os:system('x')\"", "trainer", "os:system('x')"),
    "set: a Python object": _set("tags are not read", "hyperparams.a=!!python/object/apply:os.system ['touch ran']"),
    # no text, no document
    "yaml: tabs": _spec("not YAML", "hyperparams:\n\ta: 1\n"),
    "yaml: two documents": _spec("expected one document", "---\nseed: 1\n"),
    "yaml: another version": _whole("expected YAML 1.2", "%YAML 1.1\n---\n" + GOOD),
    "yaml: unclosed": _spec("not YAML", 'owner: "me\n'),
    "yaml: a list": _whole("expected a mapping (key: value), found a list of 1", "- a\n"),
    "yaml: a word": _whole("expected a mapping (key: value), found 'hello'", "hello\n"),
    "yaml: comments only": _whole("expected a mapping (key: value), found an empty document", "# nothing\n"),
    "empty": _whole("the file is empty", "\n \n"),
    "binary garbage": _whole("expected UTF-8, found the byte 0x80", bytes(range(128, 256)) * 64),
    "byte order mark": _whole("starts with a byte order mark", b"\xef\xbb\xbf" + GOOD.encode()),
    "UTF-16": _whole("expected UTF-8, found the byte 0xff", GOOD.encode("utf-16")),
    "Latin-1": _whole("spec.yaml:9: expected UTF-8, found the byte 0xe4", GOOD.encode() + b"owner: \xe4\n"),
    "NUL": _whole("the character 0x0 is not allowed", GOOD.encode() + b"owner: a\0b\n"),
    "half of a surrogate pair": _whole("half of a surrogate pair", _json(owner="\ud800"), "spec.json"),
    "json: torn": _whole("not JSON", _json()[:-5], "spec.json"),
    "json: comments": _whole("not JSON", "// mine\n" + _json(), "spec.json"),
    "another suffix": _whole("expected a file that ends in", GOOD, "spec.py"),
    # numbers
    "NaN in YAML": _spec("clip_grad_norm: expected a finite number, found nan", "clip_grad_norm: .nan\n"),
    "infinity in hyperparams": _spec(
        "hyperparams.a: expected a finite number, found -inf", "hyperparams: {a: -.inf}\n"
    ),
    "NaN in JSON": _whole("threads: expected a whole number, found nan", _json(threads=float("nan")), "spec.json"),
    "NaN by --set": _set("optimizer.lr: expected a finite number, found nan", "optimizer.lr=.nan"),
    "NaN in TOML": _whole("seed: expected a whole number, found nan", "seed = nan\n", "spec.toml", lines=8),
    "a number too long": _changed("seed: expected a whole number, found inf", "seed", "9" * 100_000),
    "a number too large": _changed("seed: expected at most 9223372036854775807", "seed", str(2**64)),
    "a number of 10,000 bits in hyperparams": _spec("at most 64 bits", f"hyperparams: {{a: {2**1000}}}\n"),
    "a number too long in JSON": _whole("seed", _json().replace("42", "9" * 50_000), "spec.json"),
    "a number too long in TOML": _whole("more digits than any field takes", "seed = " + "9" * 50_000, "spec.toml"),
    # wrong types, unknown keys, rules
    "text for a number": _changed("max_steps: expected a whole number, found 'ten'", "max_steps", "ten"),
    "a YAML 1.1 boolean": _changed("ddp: expected true or false, found 'no'", "ddp", "no"),
    "a list for a section": _spec("gates: expected a mapping (key: value)", "gates: [patience]\n"),
    "an unknown key": _spec("sead: unknown key; did you mean seed?", "sead: 1\n"),
    "an unknown nested key": _spec("optimizer.learning_rate: unknown key", "optimizer: {learning_rate: 1}\n"),
    "three mistakes": _spec("sead", "sead: 1\nthreads: -1\nema: {decay: 2}\n", lines=3),
    "a device with a command": _changed("expected a device such as cpu", "device", "'cpu; reboot'"),
    "a folder of runs that is no path": _spec("runs_dir: expected a path", 'runs_dir: "a\\0b"\n'),
    "no budget": _changed("max_steps: a budget is required", "max_steps", "null"),
    # extends
    "extends: a circle": Hostile(
        "extends itself, in a circle", {"spec.yaml": "extends: b.yaml\n", "b.yaml": "extends: spec.yaml\n"}
    ),
    "extends: itself": Hostile("extends itself, directly", {"spec.yaml": "extends: spec.yaml\n"}),
    "extends: missing": _spec("extends: none.yaml: no such file", "extends: none.yaml\n"),
    "extends: a list of two owners": Hostile(
        "two bases have this list",
        {
            "spec.yaml": GOOD + "extends: [a.yaml, b.yaml]\n",
            "a.yaml": "hyperparams: {a: [1]}\n",
            "b.yaml": "hyperparams: {a: [2]}\n",
        },
    ),
    "extends: a file that is no spec": _spec("expected a file that ends in", "extends: /etc/passwd\n"),
    "extends: a folder": Hostile(
        "expected a file, found a folder", {"spec.yaml": GOOD + "extends: sub.yaml\n", "sub.yaml": Path.mkdir}
    ),
    "extends: no name": _spec("expected a file name or a list of them, found 3", "extends: 3\n"),
    "extends: too many": _spec("more than 32 names of files", f"extends: [{'x.yaml,' * 40}]\n"),
    "extends: by --set": _set("extends: is read from files only", "extends=b.yaml"),
    # profiles
    "profile: unknown": Hostile(
        "no profile is called 'prdo'; did you mean prod?",
        {"spec.yaml": GOOD + "profiles: {prod: {seed: 1}}\n"},
        ("--profile", "prdo"),
    ),
    "profile: a path": Hostile(
        "no profile is called '../../x'; this spec has none", arguments=("--profile", "../../x")
    ),
    "profile: another one is wrong": _spec("profiles.prod.sead: unknown key", "profiles: {prod: {sead: 1}}\n"),
    # --set
    "set: no equals sign": _set("expected KEY=VALUE such as", "seed"),
    "set: no key": _set("expected KEY=VALUE such as", "=1"),
    "set: an empty part": _set("expected KEY=VALUE such as", "optimizer..lr=1"),
    "set: an item of a list": _set("a list is set as a whole", "dataset.parquet_paths.0=x"),
    "set: an attribute": _set("__class__: unknown key", "__class__.__init__=1"),
    "set: a comment": _set("put it in quotes", "owner=me # you"),
    "set: a control character": _set("owner: expected one line of at most 256 characters", 'owner="a\\x1b[2Jb"'),
    # ids
    "id: up": _run_id("../../x"),
    "id: below": _run_id("a/b"),
    "id: absolute": _run_id("/tmp/x"),
    "id: empty": _run_id(""),
    "id: too long": _run_id("a" * 65),
    "id: a Cyrillic look-alike": _run_id("dem\u043e"),
    "id: a full-width look-alike": _run_id("\uff44emo"),
    "id: a small look-alike of a slash": _run_id("a\u2215b"),
    "id: reserved": _run_id("jobs"),
    "id: reserved in capitals": _run_id("LOGS"),
    "id: a leading dot": _run_id(".trn"),
    "id: only dots": _run_id(".."),
    "id: an option": _run_id("--resume"),
    "id: a line break": _run_id("demo\n"),
    "id: a control character": _run_id("demo\x1b[2J"),
    "id: a space": _run_id("a b"),
    "id: a drive": _run_id("c:demo"),
    "id: in the spec": _spec("run_id: expected 1 to 64 of A-Z", "run_id: ../../x\n"),
    "id: reserved in the spec": _spec("run_id: expected an id that is not reserved", "run_id: jobs\n"),
    "id: by --set": _set("run_id: expected 1 to 64 of A-Z", "run_id=../../x"),
    # what is no file
    "a missing file": _whole("no such file", lambda path: None),
    "a folder": _whole("expected a file, found a folder", Path.mkdir, "folder.yaml"),
    "a circle of links": _whole("cannot be read: Too many levels of symbolic links", _link("loop.yaml"), "loop.yaml"),
    "a link to nothing": _whole("no such file", _link("nothing.yaml"), "link.yaml"),
    "a pipe": _whole("found a pipe, socket or device", os.mkfifo, "pipe.yaml"),
    "a device without an end": _whole("found a pipe, socket or device", _link("/dev/zero"), "zero.yaml"),
    "a socket": _whole("found a pipe, socket or device", _socket, "socket.yaml"),
    "a file that cannot be read": _whole("cannot be read: Input/output error", _link("/proc/self/mem"), "memory.yaml"),
    "a name too long": _whole("cannot be read: File name too long", lambda path: None, "x" * 300 + ".yaml"),
    "a file as a folder": _whole("cannot be read: Not a directory", lambda path: None, "spec.yaml/spec.yaml"),
    # what is shown of it
    "control characters in a value": _changed("precision: expected none", "precision", '"\\x1b[2J\\x07\\x9b31m"'),
    "control characters in a key": _spec("unknown key", '"\\x1b]0;owned\\x07": 1\n'),
    "text that turns around": _spec("owner: expected one line", 'owner: "\\u202egnp.exe"\n'),
    "line breaks in a value": _changed(
        "device: expected a device", "device", '"cpu\\nspec error [spec_refused] faked"'
    ),
    "control characters in a file name": _whole("no such file", lambda path: None, "a\x1b[2J\nfaked.yaml"),
    "a value without an end": _changed("precision: expected none", "precision", "x" * SIZE),
    # elsewhere
    "runs below a file": Hostile(
        "cannot create the folder", arguments=("--runs-dir", "spec.yaml/runs"), code=74, lines=2
    ),
    "runs below a device": Hostile(
        "cannot create the folder", arguments=("--runs-dir", "/dev/null/runs"), code=74, lines=2
    ),
    "a failpoint that is none": Hostile("TRN_FAULT", environ={"TRN_FAULT": "\x1b[2J"}),
}
