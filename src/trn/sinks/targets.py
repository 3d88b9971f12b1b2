"""Which module sends to which kind of target: the one table where a kind is registered.

`trn.addresses` reads the words of a target, this opens it. A maker is named by a string and imported when its kind is
wanted, since it may need a library that is an extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from trn.addresses import Target, absolute_target, parse_target
from trn.sinks.sink import CurveSink, EventSink, Refused, RunFacts

__all__ = ["SINKS", "Target", "absolute_target", "open_sink", "parse_target"]

SINKS: Mapping[str, str] = {
    "stdout": "trn.sinks.stdout:open_stdout",
    "file": "trn.sinks.file:open_file",
    "redis": "trn.sinks.redis:open_redis",
    "webhook": "trn.sinks.webhook:open_webhook",
    "tensorboard": "trn.sinks.tensorboard:open_tensorboard",
    "mlflow": "trn.sinks.mlflow:open_mlflow",
    "wandb": "trn.sinks.wandb:open_wandb",
    "prometheus": "trn.sinks.prometheus:open_prometheus",
}
"""kind -> "module:function", a function of (Target, RunFacts) that returns an EventSink or a CurveSink.

It may raise Refused, with what to install or to set; it does not connect to anything.
"""

Maker = Callable[[Target, RunFacts], EventSink | CurveSink]


def open_sink(target: Target, run: RunFacts) -> EventSink | CurveSink:
    """The sink of a target. Raises Refused where it cannot be used here at all."""
    module, _, function = SINKS[target.kind].partition(":")
    try:
        maker: Maker = getattr(importlib.import_module(module), function)
        return maker(target, run)
    except ImportError as error:
        hint = (
            f"pip install 'trn-runtime[{target.kind}]'" if target.kind in _EXTRAS else "this version cannot send there"
        )
        raise Refused(f"{error.name or error} is not installed: {hint}") from error


_EXTRAS = frozenset({"redis", "tensorboard", "mlflow", "wandb"})
