"""Write what of the docs follows from the code: `make docs`, or `python docs/generate.py`.

A page is written by hand but for what stands between `<!-- generated: NAME -->` and `<!-- end -->`:

    spec.md          keys       every key of a spec: from its JSON Schema
                     limits     how large a spec may be
    exit-codes.md    outcomes   one row an outcome: from trn.errors and trn.records, with the words of exit-codes.toml

Nothing else in the docs is generated. A test compares the pages with what this program would write.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trn.doors.flags import KNOBS
from trn.errors import STATUS
from trn.records import ending_of
from trn.spec import spec_schema
from trn.spec.nodes import MAX_ALIASES, MAX_DEPTH, MAX_NODES
from trn.spec.overrides import MAX_PROFILES
from trn.spec.sources import MAX_BYTES, MAX_FILES
from trn.spec.words import one_of

__all__ = ["PAGES", "main", "rendered"]

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_LARGEST = 2**53 - 1

Schema = dict[str, Any]


def main() -> int:
    for page in PAGES:
        text = rendered(page)
        if text != page.read_text():
            page.write_text(text)
            print(f"wrote {page.relative_to(DOCS.parent)}")
    return 0


def rendered(page: Path) -> str:
    """The page as it should be: each generated block made anew."""
    blocks = PAGES[page]
    text = page.read_text()
    if sorted(_BLOCK.findall(text)) != sorted(blocks):
        raise SystemExit(f"{page}: expected the blocks {', '.join(blocks)}, each once")
    return _BLOCK.sub(lambda found: f"<!-- generated: {found[1]} -->\n{blocks[found[1]]()}\n<!-- end -->", text)


# spec.md


def keys() -> str:
    """A table of the top level, then one for each section below it."""
    schema = spec_schema()
    in_files = _table({name: schema["properties"].pop(name) for name in _FILE_KEYS}, schema)
    parts = [_table(schema["properties"], schema), f"### In files only\n\n{in_files}"]
    parts += [
        f"### {path}\n\n{part['description']}\n\n{_table(part['properties'], schema, f'{path}.', part)}"
        for path, part in _sections(schema["properties"], schema, "")
    ]
    return "\n\n".join(parts)


_FILE_KEYS = ("extends", "profiles", "amp", "use_amp")


def _sections(properties: Schema, schema: Schema, above: str) -> Iterator[tuple[str, Schema]]:
    """Dotted name and schema of each section, those inside it after it."""
    for name, one in properties.items():
        if part := _section(one, schema):
            yield above + name, part
            yield from _sections(part["properties"], schema, f"{above}{name}.")


def _section(one: Schema, schema: Schema) -> Schema | None:
    """The schema of the section that a key holds, or of each in its list; None for plain values."""
    for choice in one.get("anyOf", [one.get("items", one)]):
        if "$ref" in choice:
            found: Schema = schema["$defs"][choice["$ref"].rsplit("/", 1)[1]]
            return found
    return None


def _table(properties: Schema, schema: Schema, above: str = "", part: Schema | None = None) -> str:
    """Key, value, default, flag and meaning of each; without a column that would be empty."""
    required = set(schema["anyOf"][1]["required"]) | {"precision"} if part is None else set(part.get("required", ()))
    columns = {
        "key": [f"`{name}`" for name in properties],
        "value": [_value(one, above + name) for name, one in properties.items()],
        "default": [_default(one, name in required) for name, one in properties.items()],
        "flag": [_FLAGS.get(above + name, "") for name in properties],
        "meaning": [_meaning(one, schema) for name, one in properties.items()],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    rows = [list(shown), ["---" for _ in shown], *zip(*shown.values(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _default(one: Schema, is_required: bool) -> str:
    if is_required:
        return "**required**"
    return f"`{_text(one['default'])}`" if "default" in one else ""


_FLAGS = {"run_id": "`--run-id`", "runs_dir": "`--runs-dir`"} | {
    knob.key: f"`--[no-]{knob.name[2:]}`" if knob.is_switch else f"`{knob.name}`" for knob in KNOBS
}


def _meaning(one: Schema, schema: Schema) -> str:
    said: str = one.get("description") or (_section(one, schema) or {})["description"]
    return " ".join(said.split())


def _value(one: Schema, path: str) -> str:
    """What may stand there, in words."""
    return one_of([words for choice in one.get("anyOf", [one]) for words in _choices(choice, path)])


def _choices(one: Schema, path: str) -> list[str]:
    if "$ref" in one:
        return [f"[section](#{path.replace('.', '')})"]
    if "enum" in one or "const" in one:
        return [f"`{choice}`" for choice in one.get("enum") or [one["const"]]]
    if one["type"] == "boolean":
        return ["`true`", "`false`"]
    kinds: dict[str, Callable[[], str]] = {
        "null": lambda: "`null`",
        "integer": lambda: "whole number" + _bounds(one),
        "number": lambda: "number" + _bounds(one),
        "string": lambda: "text",
        "object": lambda: "mapping",
        "array": lambda: _list(one, path),
    }
    return [kinds[one["type"]]()]


def _list(one: Schema, path: str) -> str:
    if "prefixItems" in one:
        return f"list of {len(one['prefixItems'])}: {_value(one['prefixItems'][0], path)}"
    return f"list of {_value(one['items'], path)}"


def _bounds(one: Schema) -> str:
    least, above = one.get("minimum"), one.get("exclusiveMinimum")
    most, below = one.get("maximum"), one.get("exclusiveMaximum")
    words = [f" from {least}" if least is not None else f" above {above}" if above is not None else ""]
    if most is not None and most < _LARGEST:
        words.append(f", to {most}" if least is None else f" to {most}")
    elif below is not None:
        words.append(f", below {below}")
    elif least is not None:
        words.append(" on")
    return "".join(words)


def _text(value: object) -> str:
    """A value as YAML has it: a plain word without quotes."""
    return value if isinstance(value, str) and value else json.dumps(value).replace("e-0", "e-")


def limits() -> str:
    return (
        f"A spec and all that it extends have at most {MAX_FILES} files, {MAX_BYTES >> 10} KiB, {MAX_NODES:,} keys and "
        f"values, {MAX_DEPTH} levels,\n{MAX_ALIASES:,} aliases and {MAX_PROFILES} profiles; an alias counts as what it "
        f"stands for."
    )


# exit-codes.md


def outcomes() -> str:
    words = tomllib.loads((DOCS / "exit-codes.toml").read_text())
    if set(words) != set(STATUS):
        raise SystemExit(
            f"exit-codes.toml: the outcomes are {', '.join(STATUS)}; differs in {set(words) ^ set(STATUS)}"
        )
    rows = ["| code | outcome | last event | what it means | what to do |", "|---|---|---|---|---|"]
    for word, status in STATUS.items():
        one = words[word]
        event = f"`{ending_of(word)}`" if one.get("ends", True) else ""
        later = "" if one.get("built", True) else " *No run of this version ends so.*"
        rows.append(f"| {status.exit} | `{word}` | {event} | {one['means']}{later} | {one['do']} |")
    return "\n".join(rows)


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    DOCS / "spec.md": {"keys": keys, "limits": limits},
    DOCS / "exit-codes.md": {"outcomes": outcomes},
}

if __name__ == "__main__":
    sys.exit(main())
