"""The spec's hyperparams as the trainer's own typed parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trn.errors import Problem, SpecError
from trn.provenance.secret_names import is_secret_name
from trn.spec.words import found, nearest
from trn.trainer import NoParams, Trainer

__all__ = ["make_params"]


def make_params(trainer: Trainer, hyperparams: Mapping[str, Any]) -> Any:
    """An instance of the trainer's `Params`; a plain dict for a trainer without it.

    Raises SpecError naming each hyperparameter that is unknown, missing or of another type.
    """
    kind = getattr(trainer, "Params", None)
    if kind is None:
        return dict(hyperparams)
    known = set(kind.__dataclass_fields__) if is_dataclass(kind) else set(hyperparams)
    if unknown := [key for key in hyperparams if key not in known]:
        raise SpecError([Problem(_path(key), _unknown(key, known, kind)) for key in unknown])
    try:
        return TypeAdapter(kind).validate_python(dict(hyperparams))
    except ValidationError as error:
        raise SpecError([_problem(dict(one)) for one in error.errors()]) from error


def _unknown(key: str, known: set[str], kind: type) -> str:
    if kind is NoParams:
        return "this trainer has no parameters"
    near = nearest(key, known)
    return f"unknown; did you mean {near}?" if near else f"unknown; this trainer has {', '.join(sorted(known))}"


def _problem(error: dict[str, Any]) -> Problem:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return Problem(_path(place), "missing, and it has no default")
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    shown = "another value" if is_secret_name(place) else found(error["input"])
    return Problem(_path(place), f"expected {message}, found {shown}")


def _path(place: str) -> str:
    """The path of a parameter. What follows `api_key:` is masked wherever it is written down: brackets keep it."""
    return f"hyperparams[{place}]" if is_secret_name(place) else f"hyperparams.{place}"
