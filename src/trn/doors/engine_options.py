"""Options of `run` and `resume` that say something to one engine, and to no other launcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from trn.errors import UsageError

__all__ = ["EngineOptions", "engine_options"]


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says; nothing where it is silent."""

    slurm: tuple[str, ...] = ()
    slurm_array: bool = False
    ray_address: str | None = None
    image: str = ""
    volume: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    kubernetes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: dict[str, Any], launcher: str) -> EngineOptions:
        """Takes its own out of a command's parameters. Raises UsageError for what is another launcher's."""
        own = cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})
        for name, whose in _WHOSE.items():
            if getattr(own, name) and whose != launcher:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"it goes with --launcher {whose}, found {launcher}.", where=flag)
        return own

    def words(self) -> list[str]:
        """What an engine writes down of them, as on a command line, where anything may stand in it."""
        several = {"slurm": self.slurm, "kubernetes": self.kubernetes}
        words = [f"--{name}={one}" for name, values in several.items() for one in values]
        return words + ([f"--image={self.image}"] if self.image else [])


_WHOSE = {
    "slurm": "slurm",
    "slurm_array": "slurm",
    "ray_address": "ray",
    "image": "kubernetes",
    "volume": "kubernetes",
    "secret": "kubernetes",
    "kubernetes": "kubernetes",
}

_OPTIONS = (
    click.option(
        "--slurm",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of sbatch: partition=gpu, time=12:00:00; repeatable.",
    ),
    click.option("--slurm-array", is_flag=True, help="Restart as the next task of an array, in place of a requeue."),
    click.option(
        "--ray-address", metavar="URL", help="Ray's dashboard; else RAY_API_SERVER_ADDRESS, else this machine."
    ),
    click.option("--image", default="", metavar="NAME", help="Kubernetes: the image, with trn and the trainer's code."),
    click.option("--volume", multiple=True, metavar="CLAIM:PATH", help="Kubernetes: mount a claim; repeatable."),
    click.option(
        "--secret",
        multiple=True,
        metavar="NAME=SECRET/KEY",
        help="Kubernetes: a variable from a secret of the cluster; repeatable.",
    ),
    click.option(
        "--kubernetes",
        multiple=True,
        metavar="KEY=VALUE",
        help="context, gpu, memory, namespace, queue, service_account or user; repeatable.",
    ),
)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `EngineOptions`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
