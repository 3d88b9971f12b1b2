"""What one value of a spec may be: numbers, paths, names, targets, and how a wrong one is refused.

Types are strict: text is no number and a number is no switch; a whole number may be written as `1e6`, and a whole
number is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from trn.addresses import parse_target
from trn.errors import UsageError
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN
from trn.spec.words import one_of

__all__ = [
    "AboveZero",
    "Batches",
    "BelowOne",
    "Betas",
    "Count",
    "Deterministic",
    "DeviceName",
    "FileName",
    "FolderText",
    "Inputs",
    "LARGEST",
    "Label",
    "Name",
    "Names",
    "NotNegative",
    "Nulls",
    "PathText",
    "Paths",
    "Patterns",
    "Positive",
    "RunId",
    "SampleText",
    "Seed",
    "Targets",
    "TrainerName",
    "Version1",
    "Whole",
    "Window",
]

LARGEST = 2**53 - 1
"""The last whole number that every JSON reader keeps exactly."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TRAINER = r"^[A-Za-z_][A-Za-z0-9_.-]*(:[A-Za-z_][A-Za-z0-9_.]*)?$"
_DEVICE = r"^[a-z]+(:[0-9]{1,4})?$"
_NAME = r"^[a-z][a-z0-9_]*$"


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "expected {what}", {"what": what})


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST else value


def _is_version_1(value: object) -> object:
    if type(value) is not int or value != 1:
        raise _expected("1, the only version there is")
    return value


def _is_deterministic(value: object) -> object:
    if not isinstance(value, bool) and value != "warn":
        raise _expected("true, warn or false")
    return value


def _is_window(value: object) -> object:
    value = _whole(value)
    if value != "all" and (type(value) is not int or not 1 <= value <= LARGEST):
        raise _expected("a number of row groups from 1, or all")
    return value


def _is_run_id(value: str) -> str:
    if not RUN_ID_PATTERN.fullmatch(value):
        raise _expected("1 to 64 of A-Z a-z 0-9 . _ -, the first one a letter or digit")
    if value in RESERVED_RUN_IDS:
        raise _expected(f"an id that is not reserved ({one_of(sorted(RESERVED_RUN_IDS))} name folders)")
    return value


def _is_path(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise _expected("a path")
    return value


def _is_here(value: str) -> str:
    if "://" in value:
        raise _expected("a folder on this machine")
    return value


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise _expected("at least one path")
    return value


def _is_label(value: str) -> str:
    if len(value) > 256 or not value.isprintable():
        raise _expected("one line of at most 256 characters")
    return value


def _two_numbers(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) != 2:
        raise _expected("two numbers")
    return value


def _null_policy(value: object) -> object:
    if value == "refuse":
        return value
    if not isinstance(value, Mapping):
        raise _expected("refuse, or the value that stands for null of each column that has some")
    for name, fill in value.items():
        if not isinstance(name, str) or not (fill is None or isinstance(fill, (bool, int, float, str))):
            raise _expected(f"one number, boolean or text for {name!r}, or null to let nulls through")
        if isinstance(fill, float) and not math.isfinite(fill):
            raise _expected(f"a finite number for {name!r}")
        if isinstance(fill, int) and not -(2**63) <= fill < 2**64:
            raise _expected(f"a number of at most 64 bits for {name!r}")
    return value


def _at_least_one(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise _expected("at least one pattern")
    return value


def _is_target(value: str) -> str:
    try:
        parse_target(value)
    except UsageError as error:
        told = f"{error.message} {error.hint}"
        raise PydanticCustomError("told", "{told}", {"told": told.rstrip(".")}) from error
    return value


def _no_target_twice(value: tuple[str, ...]) -> tuple[str, ...]:
    if len({parse_target(one).digest for one in value}) < len(value):
        raise _expected("each target once")
    return value


def _is_file_name(value: str) -> str:
    if not _FILE_NAME.fullmatch(value):
        raise _expected("a plain file name: 1 to 64 of A-Z a-z 0-9 . _ -, the first one a letter or digit")
    return value


Whole = BeforeValidator(_whole)
"""Takes a float for the int that it is."""
Positive = Annotated[int, Field(ge=1, le=LARGEST), Whole]
Count = Annotated[int, Field(ge=0, le=LARGEST), Whole]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_is_path)]
FolderText = Annotated[PathText, AfterValidator(_is_here)]
"""A folder that is written to; no URL."""
Label = Annotated[str, Field(max_length=256), AfterValidator(_is_label)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
Paths = Annotated[
    tuple[PathText, ...], Field(strict=False, json_schema_extra={"minItems": 1}), AfterValidator(_not_empty)
]
Nulls = Annotated[Literal["refuse"] | dict[str, bool | int | float | str | None], BeforeValidator(_null_policy)]
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
    Field(strict=False, json_schema_extra={"minItems": 1}),
    AfterValidator(_at_least_one),
]
Targets = Annotated[
    tuple[Annotated[str, Field(max_length=1024), AfterValidator(_is_target)], ...],
    Field(strict=False, max_length=16),
    AfterValidator(_no_target_twice),
]
Inputs = dict[Annotated[str, Field(pattern=_NAME, max_length=64)], PathText]
Batches = Annotated[tuple[dict[str, Any], ...], Field(strict=False)]
SampleText = Annotated[str, Field(max_length=16_384)]
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False), BeforeValidator(_two_numbers)]
Name = Annotated[str, Field(pattern=_NAME)]
TrainerName = Annotated[str, Field(pattern=_TRAINER, max_length=256)]
DeviceName = Annotated[str, Field(pattern=_DEVICE)]
FileName = Annotated[str, AfterValidator(_is_file_name)]
RunId = Annotated[str, AfterValidator(_is_run_id), Field(json_schema_extra={"pattern": f"^{RUN_ID_PATTERN.pattern}$"})]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1), Whole]
Window = Annotated[int | Literal["all"], BeforeValidator(_is_window)]
Version1 = Annotated[Literal[1], BeforeValidator(_is_version_1)]
Deterministic = Annotated[bool | Literal["warn"], BeforeValidator(_is_deterministic)]
