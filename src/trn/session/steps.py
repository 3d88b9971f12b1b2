"""The loop of `trn.loop`, asked from outside: a step is begun, and made by whoever asked.

    begin   what was due after the step before -> stop? end? -> the rows of the next batch
    made    values finite? -> line -> gates -> journal

The order is that of `trn.loop.loop.train`, with whose parts it is made. What is due after a step is done when the next
one is begun, so that all of the loop's body belongs to its step: a scheduler that is stepped after `run.log` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from time import perf_counter
from typing import Any

from trn.errors import DataExhausted, NumericalInstability, UsageError
from trn.feed import RawBatch
from trn.gates import EpochTally, Verdict, after_step
from trn.loop.beats import Beats
from trn.loop.cadences import is_checkpoint_due, is_settled, settle
from trn.loop.lines import finite_metrics, step_line
from trn.loop.loop import Ending, Parts, announce, end, take_up
from trn.loop.progress import Progress
from trn.loop.saving import checkpoint
from trn.loop.verdicts import is_used_up, report_readings, report_refusal, rules_of, tell_reports, verdict_at_end
from trn.records import Json, deterministic_part
from trn.spec.plan_model import Plan

__all__ = ["Steps"]

_MOST_UNTALLIED = 256


class Steps:
    """One step at a time. `ending` is how the loop ended, None while it goes on.

    `take` gives the rows of the next batch. A step is written out in few calls: after arithmetic that leaves the caches
    cold, each costs more than half a microsecond.
    """

    def __init__(
        self, parts: Parts, progress: Progress, last_line: Json, *, take: Callable[[], RawBatch | None]
    ) -> None:
        self.progress = progress
        self.ending: Ending | None = None
        self.wants_checkpoint = False
        """Whether one is to be made after this step, whatever the cadence says."""
        self._parts, self._rules = parts, rules_of(parts.plan)
        self._stop, self._ctx, self._take = parts.stop, parts.ctx, take
        self._has_limit = parts.plan.max_runtime_s > 0
        """Whether the clock can end the run: else only what asks, a signal, can."""
        self._budget, self._metric_every = parts.plan.budget, parts.plan.metric_every
        self._max_steps = self._budget.max_steps
        self._quiet = _Quiet(parts.plan)
        self._names: dict[str, str] = {}
        """Names of metrics as they are given, and as they are written: those that were found good once."""
        self._last_line = last_line
        self._saved = progress.step
        self._in_flight = 0
        """Checkpoints that were taken, and of which no event tells yet."""
        self._raw: RawBatch | None = None
        self._began_s = self._got_s = 0.0
        self._epoch = 0
        self._is_unsettled = progress.step > 0
        self._untallied: list[tuple[float | None, float | None, float]] = []
        """Steps of the epoch that its tally does not know yet: it is asked for where something is due."""
        self._passed: dict[str, float] = {}
        self._refusal: BaseException | None = None
        """What the run ends with, whatever the loop makes of it."""
        self._is_busy = False
        """Whether an evaluation, or an object that is saved, may call us."""
        self._begun = progress.step
        parts.pulse.progress, parts.pulse.doing = progress, "train"
        parts.pulse.mark("train_begin")
        self._beats = Beats(parts.plan, parts.events, parts.pulse)
        tell_reports(parts.events, progress.step, parts.ctx._reported())
        self._verdict: Verdict | None = None

    def begin(self) -> RawBatch | None:
        """The rows of the next step, None where the run is over: then `ending` says how.

        Raises what gates, evaluation and disk raise, also whenever it is asked again; UsageError where the step before
        was never logged.
        """
        stop, progress = self._stop, self.progress
        if self.ending is not None:
            return None
        if self._raw is not None or self._refusal is not None or self._is_busy:
            raise self._not_made()
        stop.breakable = False
        try:
            if self._is_unsettled:
                is_quiet = self._quiet.until > progress.step and len(self._untallied) < _MOST_UNTALLIED
                if is_quiet and not self.wants_checkpoint:
                    progress.settled, self._is_unsettled = progress.step, False
                else:
                    self._settle()
            raw = None
            may_be_over = self._in_flight or self._has_limit or self._verdict is not None or stop.outcome is not None
            if progress.step < self._max_steps and not may_be_over:  # as nearly always: `_next` without its calls
                self._began_s = perf_counter()
                raw = self._take()
                self._got_s = perf_counter()
            if raw is None:
                raw = self._next()
        except BaseException as error:
            self._refusal = error
            raise
        if raw is not None:
            if raw.wrapped:
                self._parts.events.emit("data_wrapped", step=progress.step + 1, pass_index=raw.pass_index)
            self._epoch = progress.step // self._budget.steps_per_epoch
            self._ctx._enter_step(progress.step + 1, self._epoch, raw.row_ids, raw.row_passes, progress.gates.lr_factor)
            self._raw, self._passed, self.wants_checkpoint = raw, {}, False
            if progress.step == self._begun:
                self._parts.pulse.mark("first_batch")
                self._parts.pulse.mark("first_step_begin")
        stop.breakable = True
        return raw

    def take(self, values: Mapping[str, Any], asked: str) -> None:
        """Values of the step, for its line. Raises NumericalInstability, also whenever it is asked again."""
        if self._raw is None or self._refusal is not None:
            raise self._not_begun(asked)
        names = self._names
        found: dict[str, float] = {}
        for name, given in values.items():  # what is good, as nearly always: a third of what finite_metrics takes
            try:
                value = given if type(given) is float else given.item()
            except (AttributeError, RuntimeError, TypeError, ValueError):
                break
            if name not in names or type(value) is not float or not isfinite(value):
                break
            found[names[name]] = value
        if len(found) != len(values):
            found = self._finite(values)
        self._passed |= found

    def made(self, metrics: Mapping[str, Any], tokens: int | None) -> None:
        """The update of the step is done. Raises NumericalInstability for what came out of it."""
        self._stop.breakable = False  # a line is written whole: a second SIGINT breaks nothing off in here
        self.take(metrics, "run.log")
        parts, progress, raw = self._parts, self.progress, self._raw
        assert raw is not None, "there was something to take"
        tokens_seen = progress.tokens_seen if tokens is None else (progress.tokens_seen or 0) + _whole(tokens)
        ended_s, waited_s = perf_counter(), self._got_s - self._began_s
        step, wall_s = progress.step + 1, ended_s - self._began_s
        line = step_line(
            *(step, self._epoch, self._passed, tokens, raw.batch_rows),
            wall_s=wall_s,
            waited_s=waited_s,
            tokens_seen=tokens_seen,
        )
        if (pulse := parts.pulse).gpu is not None:
            line["gpu_util_pct"] = pulse.gpu_util_pct(ended_s)
        if not raw.batch_rows:
            line["samples_per_sec"] = None
        # with these two, and no sensor, every reading is in range: all others are made of them
        if pulse.gpu is not None or not wall_s > 0 <= waited_s:
            gates, judged, self._verdict = after_step(progress.gates, self._rules, line)
            if gates.telemetry_warnings and not progress.gates.telemetry_warnings:
                report_readings(parts.events, line)  # as it was read
            progress.gates, line = gates, judged
        parts.metrics.append(line)
        if self._ctx._reports:
            tell_reports(parts.events, step, self._ctx._reported())
        self._untallied.append((line["train_loss"], line["grad_norm"], wall_s))
        progress.step, progress.cursor, progress.tokens_seen = step, raw.next_cursor, tokens_seen
        parts.state.step = step
        if self._metric_every and step % self._metric_every == 0:
            parts.events.emit("metric", **deterministic_part(line))
        pulse.ended_s, pulse.waited_s = ended_s, waited_s
        pulse.waited_total_s += waited_s
        if ended_s >= self._beats.due_s:
            self._beats.beat(step, ended_s)
        if step == self._begun + 1:
            pulse.mark("first_step_end")
        self._last_line, self._raw, self._is_unsettled = line, None, True
        self._stop.breakable = True

    def close(self) -> None:
        """Nothing is begun or made any more: the folder is not ours from now on."""
        self.ending = self.ending or Ending("cancelled", "the block was left")
        self._raw = None

    def leave(self) -> Ending:
        """How the run ends of which the loop was left now."""
        if self.ending is not None:
            return self.ending
        if self._refusal is not None:
            raise self._refusal
        stop, progress, budget = self._parts.stop, self.progress, self._parts.plan.budget
        is_in_step = self._raw is not None
        if self._is_unsettled:
            self._settle()
        if is_in_step or not self._is_over():
            when = f"in step {progress.step + 1}" if is_in_step else f"after step {progress.step}"
            stop.ask("cancelled", f"the loop was left {when}, of {budget.max_steps}")
        # in the middle of a step nobody knows what the weights are: they are not saved, and the last checkpoint stands
        return self._end(may_save=not is_in_step)

    def _next(self) -> RawBatch | None:
        while not self._is_over():
            self._began_s = perf_counter()
            raw = self._take()
            self._got_s = perf_counter()
            if raw is not None:
                return raw
            if not self._stop.requested():
                budget = f"{self.progress.step} of {self._budget.max_steps} steps"
                raise DataExhausted(f"the data ended after {budget}.", where="dataset", hint="Set end: cycle.")
        self.ending = self._end()
        return None

    def _tally(self) -> None:
        """Let the tally of the epoch know all its steps; a step that ends an epoch is always settled."""
        progress, steps = self.progress, self._untallied
        if steps and (progress.step - len(steps)) % self._budget.steps_per_epoch == 0:
            progress.tally = EpochTally()
        for train_loss, grad_norm, wall_s in steps:
            progress.tally = progress.tally.with_step(train_loss, grad_norm, wall_s)
        steps.clear()

    def _settle(self) -> None:
        """Do what is due after the step that was made, or what a kill left undone after the one that was restored."""
        self._is_unsettled, self._is_busy = False, True
        parts, progress = self._parts, self.progress
        self._tally()
        if progress.step == self._begun:
            self._verdict = take_up(parts, progress)
        else:
            self._quiet.look_on(progress.step)
            self._verdict = settle(parts, progress) or self._verdict
            is_due = self.wants_checkpoint or is_checkpoint_due(parts.plan, progress)
            if is_due and not (self._verdict and self._verdict.is_damage):
                checkpoint(parts, progress, self._last_line)
                self._saved = progress.step
                self._in_flight += 1
        self._is_busy = False

    def _is_over(self) -> bool:
        if self._in_flight:
            self._in_flight -= announce(self._parts.saver, self._parts.events)
        if self.progress.step >= self._budget.max_steps or self._verdict is not None:
            return True
        return self._stop.outcome is not None or (self._has_limit and self._stop.requested())

    def _end(self, *, may_save: bool = True) -> Ending:
        self._tally()
        plan, progress = self._parts.plan, self.progress
        verdict: Verdict | None = self._verdict
        if verdict is None and is_used_up(plan, progress) and is_settled(plan, progress):
            verdict = verdict_at_end(plan, progress)
        is_saved = self._saved == progress.step or not may_save
        self._parts.pulse.begin("train_end")
        return end(self._parts, progress, self._last_line, verdict, is_saved=is_saved)

    def _finite(self, values: Mapping[str, Any]) -> dict[str, float]:
        try:
            found = finite_metrics(self.progress.step + 1, values)
        except NumericalInstability as error:
            assert self._raw is not None, "values are those of a step"
            self._stop.breakable = False
            report_refusal(self._parts.events, error, self._raw.row_ids.tolist())
            self._refusal = error
            raise
        self._names.update(zip(values, found, strict=True))
        return found

    def _not_begun(self, asked: str) -> BaseException:
        return self._refusal or UsageError(
            "there is no step under way.", where=asked, hint="Call it once for each batch of run.feed."
        )

    def _not_made(self) -> BaseException:
        if self._is_busy and self._refusal is None:
            return UsageError(
                f"what is due after step {self.progress.step} is being done.",
                where="run.feed",
                hint="Take no batches of the training in an evaluation.",
            )
        return self._refusal or UsageError(
            f"step {self.progress.step + 1} was not logged, and the next batch is asked for.",
            where="run.feed",
            hint="Call run.log(...) once for each batch, after its update.",
        )


def _whole(tokens: int) -> int:
    if type(tokens) is not int or not 0 <= tokens < 1 << 63:
        raise UsageError(f"expected a whole number, or None, found {tokens!r:.60}.", where="run.log(tokens=...)")
    return tokens


class _Quiet:
    """Before which step nothing can be due: all cadences are multiples of these, or the end of the budget."""

    def __init__(self, plan: Plan) -> None:
        validation = plan.validation
        asked = (plan.checkpoint.every_steps, plan.budget.steps_per_epoch, plan.sample_every)
        self._cadences = [one for one in (*asked, validation.every_steps if validation else 0) if one]
        self._max_steps = plan.budget.max_steps
        self.until = 0

    def look_on(self, step: int) -> None:
        """From after `step` on."""
        self.until = min(self._max_steps, *((step // one + 1) * one for one in self._cadences))
