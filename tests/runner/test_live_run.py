"""In real runs: a trainer that goes its own way is refused, and what is recorded is what a trainer found alive."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.forkserver import ForkServer
from support.job import TRAINER, command, write_job

pytestmark = pytest.mark.slow

# a line of `build`, or of a `configure` that goes on with what TorchTrainer made; and what is said
IN_BUILD = {
    "more threads": ("torch.set_num_threads(2)", "at threads: planned 1, found 2."),
    "no determinism": ("torch.use_deterministic_algorithms(False)", "at deterministic: planned True, found False."),
    "another seed": ("torch.manual_seed(0)", "at seed: planned 42, found 0."),
    "another default type": (
        "torch.set_default_dtype(torch.float64)",
        "at precision (default type): planned 'torch.float32', found 'torch.float64'.",
    ),
}
IN_CONFIGURE = {
    "another optimizer": (
        "state.optimizer = torch.optim.SGD(state.parameters, lr=0.01)",
        "at optimizer.name: planned 'AdamW', found 'SGD'.",
    ),
    "another learning rate": (
        "state.optimizer.param_groups[0]['lr'] = 0.5",
        "at optimizer.lr: planned 0.01, found 0.5.",
    ),
    "a layer that is not trained": (
        "state.optimizer.param_groups[0]['params'] = state.parameters[2:]",
        "at optimizer (parameters): planned 6, found 4.",
    ),
    "a model of its own": (
        "state.model = nn.Linear(8, 1)",
        "optimizer (parameters): planned 2, found 0; optimizer (parameters of another model): planned 0, found 6.",
    ),
}
CONFIGURE = """
    def configure(self, ctx):
        state = super().configure(ctx)
        {deed}
        return state
"""


@pytest.mark.parametrize("name", [*IN_BUILD, *IN_CONFIGURE])
def test_a_trainer_that_does_otherwise_than_planned_is_refused(server: ForkServer, tmp_path: Path, name: str) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=20), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    deed, says = {**IN_BUILD, **IN_CONFIGURE}[name]
    if name in IN_BUILD:
        head = "        p = ctx.params\n"
        trainer.write_text(trainer.read_text().replace(head, f"        {deed}\n{head}", 1))
    else:
        trainer.write_text(trainer.read_text() + CONFIGURE.format(deed=deed))
    assert server.run(command(spec, tmp_path, "run"), log) == 78, log.read_text()
    refusal = log.read_text().splitlines()[0]
    assert refusal.startswith("plan error [plan_refused] at ")
    assert says in refusal
    assert "Noisy" in refusal
    assert "Traceback" not in log.read_text()
    # a refusal leaves nothing: with the trainer mended, the same command starts the run
    assert not run_dir.exists()
    assert list((tmp_path / ".trn/staging").iterdir()) == []
    trainer.write_text(TRAINER)
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()


def test_a_resume_that_is_refused_for_what_its_trainer_makes_changes_nothing(
    server: ForkServer, tmp_path: Path
) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=40), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    trainer = spec.parent / "noisy.py"
    going_back = ["--resume", "--checkpoint", "25", "--allow-change", "code"]
    wider = ("nn.Linear(8, p.width)", "nn.Linear(8, p.width, bias=False)")
    for old, new in (("p = ctx.params", "p = ctx.params; torch.manual_seed(9)"), wider):
        trainer.write_text(TRAINER.replace(old, new))
        before = contents(run_dir)
        assert server.run(command(spec, tmp_path, "run", *going_back), log) == 78, log.read_text()
        assert contents(run_dir) == before
    trainer.write_text(TRAINER)
    assert server.run(command(spec, tmp_path, "run", *going_back), log) == 0, log.read_text()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names who held it last."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


DUMP = """
    def sample(self, state, ctx):
        import json
        group = dict(state.optimizer.param_groups[0])
        parameters = group.pop("params")
        live = {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "optimizer": type(state.optimizer).__name__.lower(),
            "arguments": {name: group[name] for name in ("weight_decay", "betas", "eps")},
            "fused": group["fused"],
            "lr": group["lr"],
            "devices": sorted({str(parameter.device) for parameter in parameters}),
            "width": state.model[0].out_features,
            "dropout": state.model[3].p,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        return {"live.json": json.dumps(live)}
"""


def test_the_plan_for_people_says_what_was_alive_in_the_run(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=20), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    text = trainer.read_text()
    trainer.write_text(text[: text.index("    def sample")] + DUMP.lstrip("\n"))
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    live: dict[str, Any] = json.loads((run_dir / "samples/step-00000020-live.json").read_text())
    resolved = YAML(typ="safe", pure=True).load((run_dir / "reports/config_resolved.yaml").read_bytes())
    assert resolved == json.loads((run_dir / "reports/resolved_config.json").read_bytes())
    optimizer, schedule = resolved["optimizer"], resolved["schedule"]
    assert live["threads"] == resolved["threads"] == 1
    assert live["deterministic"] is resolved["deterministic"] is True
    assert live["optimizer"] == optimizer["name"] == "adamw"
    assert live["arguments"] == {name: optimizer["arguments"][name] for name in live["arguments"]}
    assert set(optimizer["arguments"]) == {*live["arguments"], "lr"}
    assert live["fused"] is optimizer["fused"] is True
    assert live["devices"] == [resolved["device"]] == ["cpu"]
    assert {"width": live["width"], "dropout": live["dropout"]} == resolved["trainer"]["params"]
    assert live["versions"].items() <= resolved["versions"].items()
    # the last update, of index 19, had the rate that the planned schedule gives
    assert schedule == {
        "kind": "warmup_cosine",
        "warmup_steps": 10,
        "total_steps": 20,
        "lr_max": 0.01,
        "lr_min": 0.0001,
        "arguments": {},
    }
    assert live["lr"] == pytest.approx(0.0001 + 0.0099 * 0.5 * (1 + math.cos(math.pi * 9 / 10)), rel=1e-12)
    assert optimizer["arguments"]["lr"] == schedule["lr_max"]
