"""An MLflow tracking store, by mlflow-skinny: the plan as parameters, the metrics by step, the outcome as status.

The MLflow run of a run of ours is found by its tags, and gone on with. MLflow can take no point back: where a point is
void, its run is given up (it goes to MLflow's trash) and another is written from the files, so that no curve ever has
two points at a step. `train/step` and `val/step` say how far it is; each batch carries them, and is stored whole.
The time of a point is when it was written here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from trn.records import Json
from trn.sinks.curves import CURVE_FILES, flat_params, lines_up_to, points, run_state
from trn.sinks.secrets import secret_of
from trn.sinks.sink import Curve, CurveSink, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["MLflowSink", "open_mlflow"]

_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""In a batch: limits of the store's interface."""
_LONGEST_NAME, _LONGEST_PARAM = 250, 6000
_NOT_IN_NAMES = re.compile(r"[^/\w.\- ]")

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # the relay has a patience of its own, and a job's end waits for it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_NO_TO_THIS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "NOT_IMPLEMENTED"})
_NO_TO_US = frozenset({"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"})
"""Answers that stay the same however often one asks."""


def open_mlflow(target: Target, run: RunFacts) -> CurveSink:
    """A sink into the experiment `?experiment=`, else `trn`, of the store behind `mlflow:`.

    Raises ImportError where MLflow is not installed.
    """
    return MLflowSink(target, run)


class MLflowSink(CurveSink):
    """One MLflow run, named and tagged with the run's id."""

    def __init__(self, target: Target, run: RunFacts) -> None:
        self._library = _load()
        self._target, self._run = target, run
        self._experiment = target.options.get("experiment", "trn")
        self._tags = {"trn.run_id": run.run_id, "trn.run_dir": str(run.run_dir)}
        self._client: Any = None
        self._id = ""
        self._has: dict[Curve, int] = {}

    def begin(self, from_step: int) -> None:
        with self._told(is_beginning=True):
            _give_secrets(self._target, self._run)
            if self._client is None:
                self._client = self._library.Client(self._target.path)
            experiment_id = self._find_experiment()
            found = self._find_runs(experiment_id)
            kept = found[0] if from_step and found and max(_steps_of(found[0]).values()) <= from_step else None
            if kept is None:
                kept = self._client.create_run(experiment_id, tags=self._tags, run_name=self._run.run_id)
            self._id, self._has = kept.info.run_id, _steps_of(kept)
            self._client.update_run(self._id, status="RUNNING")
            self._describe(kept.data.params)
            for kind, has in self._has.items():
                self._send(
                    kind, (line for line in lines_up_to(self._run.reports, kind, from_step) if line["step"] > has)
                )
            for other in found:
                if other.info.run_id != self._id:
                    self._client.delete_run(other.info.run_id)

    def write(self, kind: Curve, lines: Sequence[Json]) -> None:
        with self._told():
            self._send(kind, lines)

    def cut(self, step: int) -> None:
        if max(self._has.values()) > step:
            self.begin(step)

    def close(self) -> None:
        state, exit_code = run_state(self._run.run_dir)
        if not self._id or state == "running":
            return
        status = "KILLED" if state in ("cancelled", "preempted") else "FINISHED" if exit_code == 0 else "FAILED"
        with contextlib.suppress(Unreachable, Refused), self._told():
            self._client.set_tag(self._id, "trn.outcome", state)
            self._client.set_terminated(self._id, status=status)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            with contextlib.suppress(self._library.Error):  # somebody else may have been first
                return str(self._client.create_experiment(self._experiment))
            found = self._client.get_experiment_by_name(self._experiment)
        if found is None or found.lifecycle_stage != "active":
            raise Refused(
                f"the MLflow experiment {self._experiment!r} is deleted: restore it, or name another", of_target=True
            )
        return str(found.experiment_id)

    def _find_runs(self, experiment_id: str) -> list[Any]:
        """What MLflow has of this run, the newest first."""
        # an id has no quotes; a path may have some, and is compared here
        named = f"tags.`trn.run_id` = '{self._run.run_id}'"
        found = self._client.search_runs([experiment_id], named, order_by=["attributes.start_time DESC"])
        return [run for run in found if run.data.tags.get("trn.run_dir") == self._tags["trn.run_dir"]]

    def _describe(self, has: dict[str, str]) -> None:
        """The plan as parameters. They are there for good: what a resume changed since stands in tags."""
        plan, tag, param = self._run.plan, self._library.Tag, self._library.Param
        params = {_name(name): _text(value) for name, value in flat_params(plan).items()}
        tags = {
            "trn.job_id": self._run.job_id,
            "trn.fingerprint": plan.get("fingerprint"),
            "trn.trainer_code": (plan.get("trainer") or {}).get("code_sha256"),
            **{f"trn.changed.{name}": text for name, text in params.items() if has.get(name, text) != text},
        }
        told = [tag(name[:_LONGEST_NAME], str(text)) for name, text in tags.items() if text]
        new = [param(name, text) for name, text in params.items() if name not in has]
        for some in _cut_into(told, _MOST_PARAMS):
            self._client.log_batch(self._id, tags=some)
        for some in _cut_into(new, _MOST_PARAMS):
            self._client.log_batch(self._id, params=some)

    def _send(self, kind: Curve, lines: Iterable[Json]) -> None:
        """In batches of whole lines, each with the step that it comes to."""
        metric = self._library.Metric
        now_ms = int(time.time() * 1000)
        batch: list[Any] = []
        step = self._has[kind]
        for line in lines:
            new = [metric(_name(name), value, now_ms, line["step"]) for name, value in points(kind, line).items()]
            if batch and len(batch) + len(new) >= _MOST_METRICS:
                self._store(kind, batch, step)
                batch = []
            for some in _cut_into(new[: -_MOST_METRICS + 1], _MOST_METRICS):
                self._client.log_batch(self._id, metrics=some)  # a line that fills a batch alone
            batch += new[-_MOST_METRICS + 1 :]
            step = line["step"]
        if step > self._has[kind]:
            self._store(kind, batch, step)

    def _store(self, kind: Curve, batch: list[Any], step: int) -> None:
        marker = self._library.Metric(f"{kind}/step", step, int(time.time() * 1000), step)
        self._client.log_batch(self._id, metrics=[*batch, marker])
        self._has[kind] = step

    @contextlib.contextmanager
    def _told(self, *, is_beginning: bool = False) -> Iterator[None]:
        """What goes wrong there, in the relay's words."""
        try:
            yield
        except self._library.Error as error:
            reason = str(error).partition("\n")[0]
            if error.error_code in _NO_TO_THIS | _NO_TO_US:
                raise Refused(reason, of_target=is_beginning or error.error_code in _NO_TO_US) from error
            raise Unreachable(reason) from error
        except (Refused, Unreachable):
            raise
        except Exception as error:  # a store's own library (a driver of a database) may raise anything
            raise Unreachable(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _steps_of(run: Any) -> dict[Curve, int]:
    """How far an MLflow run is."""
    return {kind: int(run.data.metrics.get(f"{kind}/step", 0)) for kind in CURVE_FILES}


def _name(name: str) -> str:
    """The name in letters that MLflow takes; no part of it may be a step in a path."""
    parts = _NOT_IN_NAMES.sub("_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))[:_LONGEST_NAME].strip("/") or "_"


def _text(value: str | int | float | bool) -> str:
    return (value if isinstance(value, str) else repr(value))[:_LONGEST_PARAM]


def _cut_into(things: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _give_secrets(target: Target, run: RunFacts) -> None:
    """MLflow takes them from this process's environment, and from nowhere else. Raises Refused."""
    found = {
        "USERNAME": target.options.get("username"),
        "PASSWORD": secret_of(target, run, "password"),
        "TOKEN": secret_of(target, run, "token"),
    }
    os.environ.update({f"MLFLOW_TRACKING_{name}": value for name, value in found.items() if value is not None})


def _load() -> Any:
    """What is used of MLflow, which must not phone home, nor wait in its own way."""
    for name, value in _QUIET.items():
        os.environ[name] = (
            value if name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK") else os.environ.get(name, value)
        )
    for name in ("no_proxy", "NO_PROXY"):  # what goes to this machine, a token with it, is for no proxy to see
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost", "::1")))
    import sqlalchemy  # noqa: F401 - mlflow-skinny comes without it, and then misleads about what is missing
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    utils.MAX_RETRY_COUNT = 1  # else a database that is not there is asked for 100 s, in one call
    return SimpleNamespace(Client=MlflowClient, Metric=Metric, Param=Param, Tag=RunTag, Error=MlflowException)
