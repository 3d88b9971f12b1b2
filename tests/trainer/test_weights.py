"""First weights: every form of file, what does not fit in one line, and nothing that could run code."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import PlanRefused
from trn.files import sha256_file
from trn.plan.gating import plan_gates
from trn.plan.weights import plan_weights
from trn.runner.contract import plan_differences, revise
from trn.spec import Spec
from trn.spec.plan_model import EmaPlan, WeightsPlan
from trn.trainer import Context, NoParams, Step, TorchState, TorchTrainer
from trn.trainer.weights import load_weights


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x_BF))
        return result


class Fit(TorchTrainer):
    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return Net()

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step((model(batch["x"]).squeeze(1) - batch["y"]).square().mean(), count=len(batch["y"]))


def other_weights(seed: int = 9) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = Net()
    net(torch.randn(16, 3))  # the means of the batch norm move
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def planned(path: Path, *, allow_partial: bool = False) -> WeightsPlan:
    return WeightsPlan(
        path=str(path), sha256=sha256_file(path), size_bytes=path.stat().st_size, allow_partial=allow_partial
    )


def context(tmp_path: Path, plan: WeightsPlan, *, is_new: bool = True, **changes: Any) -> Context:
    ctx = context_of(plan_of(tmp_path / "run", weights=plan, **changes))
    ctx.is_new = is_new
    return ctx


def refusal(path: Path, model: nn.Module | None = None, *, allow_partial: bool = False) -> str:
    model = model or Net()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(PlanRefused) as caught:
        load_weights(planned(path, allow_partial=allow_partial), model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 78
    assert differences("", before, dict(model.state_dict())) == [], "a refusal changes nothing"
    return str(caught.value)


def checkpoint_payload(weights: dict[str, Tensor]) -> dict[str, Any]:
    trainer = {"model": weights, "versions": {"": 1, "body.1": 2}, "optimizer": {"state": {}, "param_groups": []}}
    return {"trainer": trainer, "progress": {"step": 3}, "rng": [{}]}


def legacy(weights: dict[str, Tensor], path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


FORMS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], object]]] = {
    "safetensors": ("a.safetensors", lambda weights, path: save_file(weights, path)),
    "a bare state_dict": ("a.pt", lambda weights, path: torch.save(weights, path)),
    "of another ending": ("a.bin", lambda weights, path: torch.save(weights, path)),
    "of torch before 1.6": ("a.pth", legacy),
    "under model": ("a.pt", lambda weights, path: torch.save({"model": weights, "epoch": 3}, path)),
    "under state_dict": ("a.pth", lambda weights, path: torch.save({"state_dict": weights}, path)),
    "under model_state_dict": ("a.pth", lambda weights, path: torch.save({"model_state_dict": weights}, path)),
    "a checkpoint of a run": ("a.pt", lambda weights, path: torch.save(checkpoint_payload(weights), path)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_begins_has_the_weights_of_the_file(tmp_path: Path, form: str) -> None:
    name, save = FORMS[form]
    weights = other_weights()
    save(weights, tmp_path / name)
    plan = planned(tmp_path / name)
    ctx = context(tmp_path, plan)
    state = Fit().configure(ctx)
    assert differences("", dict(state.model.state_dict()), weights) == []
    assert ctx._reported() == [
        (
            "weights_loaded",
            {"loaded": len(weights), "missing": [], "unexpected": [], "mismatched": [], "sha256": plan.sha256},
        )
    ]


def test_nothing_is_loaded_where_a_checkpoint_follows(tmp_path: Path) -> None:
    torch.save(other_weights(), tmp_path / "a.pt")
    plan = planned(tmp_path / "a.pt")
    (tmp_path / "a.pt").unlink()  # who goes on does not need it any more
    state = Fit().configure(context(tmp_path, plan, is_new=False))
    torch.manual_seed(5)
    assert differences("", dict(state.model.state_dict()), dict(Net().state_dict())) == []


def test_loading_draws_nothing_and_the_average_begins_with_what_was_loaded(tmp_path: Path) -> None:
    torch.save(other_weights(), tmp_path / "a.pt")
    plan = planned(tmp_path / "a.pt")
    plain = Fit().configure(context_of(plan_of(tmp_path / "plain")))
    drawn = torch.get_rng_state()
    state: TorchState = Fit().configure(context(tmp_path, plan, ema=EmaPlan(decay=0.9, evaluate=False)))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(plain.parameters[0], state.parameters[0])
    assert state.average is not None
    assert torch.equal(state.average.state_dict()["head.weight"], other_weights()["head.weight"])


def test_what_does_not_fit_is_told_by_counts_and_first_names(tmp_path: Path) -> None:
    weights = other_weights()
    del weights["body.0.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(1, 7)
    weights["body.1.num_batches_tracked"] = torch.zeros(())  # float for int64
    torch.save(weights, tmp_path / "a.pt")
    said = refusal(tmp_path / "a.pt")
    assert (
        "at weights.path: 6 of 9 tensors of the model fit; 1 missing: body.0.bias; 1 unexpected: extra.weight; "
        "2 of another shape: body.1.num_batches_tracked (float32 [] for int64 []), "
        "head.weight (float32 [1, 7] for float32 [1, 4])." in said
    )
    many = nn.ParameterDict({f"p{index}": torch.zeros(1) for index in range(50)})
    torch.save(other_weights(), tmp_path / "b.pt")
    assert "50 missing: p0, p1, p10 and 47 more; 9 unexpected: " in refusal(tmp_path / "b.pt", many)


def test_partial_weights_take_what_fits_and_record_the_rest(tmp_path: Path) -> None:
    weights = other_weights()
    del weights["body.0.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(1, 7)
    torch.save(weights, tmp_path / "a.pt")
    ctx = context(tmp_path, planned(tmp_path / "a.pt", allow_partial=True))
    state = Fit().configure(ctx)
    assert torch.equal(state.model.state_dict()["body.0.weight"], weights["body.0.weight"])
    ((about, told),) = ctx._reported()
    assert about == "weights_loaded"
    assert (told["loaded"], told["missing"], told["unexpected"], told["mismatched"]) == (
        *(7, ["body.0.bias"]),
        *(["extra.weight"], ["head.weight"]),
    )


def test_weights_of_which_no_parameter_fits_are_refused_also_in_part(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3), "body.1.num_batches_tracked": torch.tensor(5)}, tmp_path / "a.pt")
    assert "not one parameter of the model is in it: 8 missing: " in refusal(tmp_path / "a.pt", allow_partial=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    weights = other_weights()
    weights["head.weight"][0, 1] = value
    torch.save(weights, tmp_path / "a.pt")
    assert "1 tensors are not finite: head.weight." in refusal(tmp_path / "a.pt")


def test_a_number_that_is_too_large_for_the_type_of_the_model_is_refused(tmp_path: Path) -> None:
    weights = {name: one.double() if one.is_floating_point() else one for name, one in other_weights().items()}
    torch.save(weights, tmp_path / "a.pt")
    load_weights(planned(tmp_path / "a.pt"), Net())
    weights["head.weight"][0, 1] = 1e300
    torch.save(weights, tmp_path / "b.pt")
    assert "1 tensors are not finite: head.weight." in refusal(tmp_path / "b.pt")


def test_a_mask_of_infinities_in_a_buffer_is_no_damage(tmp_path: Path) -> None:
    model = Net()
    model.register_buffer("mask", torch.full((2, 2), -math.inf))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert load_weights(planned(tmp_path / "a.pt"), model).missing == []


def test_of_tied_tensors_one_name_is_enough(tmp_path: Path) -> None:
    model = Net()
    model.twin = nn.Linear(4, 1)
    model.twin.weight = model.head.weight
    weights = {name: one for name, one in model.state_dict().items() if name != "twin.weight"}
    save_file(weights, tmp_path / "a.safetensors")
    assert load_weights(planned(tmp_path / "a.safetensors"), model).missing == []


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_tied_tensor_that_has_two_values_in_the_file_is_refused(tmp_path: Path, allow_partial: bool) -> None:
    model = Net()
    model.twin = nn.Linear(4, 1)
    model.twin.weight = model.head.weight
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    torch.save(weights, tmp_path / "a.pt")
    assert len(load_weights(planned(tmp_path / "a.pt"), model).loaded) == len(weights)
    weights["twin.weight"] += 1
    torch.save(weights, tmp_path / "a.pt")
    told = refusal(tmp_path / "a.pt", model, allow_partial=allow_partial)
    assert "head.weight and twin.weight are one tensor of the model, and two that differ in the file" in told


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "code": ("a.pt", lambda path: torch.save({"w": Harmful()}, path), "read without running code in it"),
    "a bare pickle": ("a.pt", lambda path: path.write_bytes(pickle.dumps(Harmful())), "read without running code"),
    "a whole model": ("a.pt", lambda path: torch.save(Net(), path), "read without running code in it"),
    "no torch file": ("a.bin", lambda path: path.write_text("hello"), "is no file of tensors"),
    "an empty file": ("a.bin", lambda path: path.write_bytes(b""), "is no file of tensors"),
    "no safetensors": ("a.safetensors", lambda path: path.write_text("hello"), "is no safetensors file: "),
    "a list": ("a.pt", lambda path: torch.save([torch.zeros(1)], path), "by name: it holds a list."),
    "nothing": ("a.pt", lambda path: torch.save({}, path), "by name: it is empty."),
    "numbers": ("a.pt", lambda path: torch.save({"a": 1}, path), "by name: 'a' is a int."),
    "a plain trainer": (
        "a.pt",
        lambda path: torch.save({"trainer": {"w": torch.zeros(1)}, "progress": {}, "rng": []}, path),
        "it is a checkpoint of a trainer that keeps its model otherwise.",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, says = BAD_FILES[kind]
    write(tmp_path / name)
    assert says in refusal(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    for name, save in (("a.pt", torch.save), ("a.safetensors", save_file)):
        save(other_weights(), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refusal(tmp_path / name)


def test_another_file_than_the_planned_one_is_refused(tmp_path: Path) -> None:
    torch.save(other_weights(), tmp_path / "a.pt")
    plan = planned(tmp_path / "a.pt")
    torch.save(other_weights(seed=10), tmp_path / "a.pt")
    with pytest.raises(PlanRefused, match="is another file than the one that was planned"):
        load_weights(plan, Net())
    (tmp_path / "a.pt").unlink()
    with pytest.raises(PlanRefused, match="cannot be read: No such file"):
        load_weights(plan, Net())


def spec_of(path: Path) -> Spec:
    return Spec.model_validate(
        {
            "config_version": 1,
            "trainer": "t:Fit",
            "dataset": {"parquet_paths": ["a.parquet"]},
            "seed": 1,
            "device": "cpu",
            "precision": "none",
            "ddp": False,
            "max_steps": 5,
            "weights": {"path": str(path)},
        }
    )


def test_a_plan_has_the_digest_of_the_file(tmp_path: Path) -> None:
    torch.save(other_weights(), tmp_path / "a.pt")
    assert plan_weights(spec_of(tmp_path / "a.pt")) == planned(tmp_path / "a.pt")


def test_a_run_with_first_weights_is_a_finetune_and_may_find_the_same_file_elsewhere(tmp_path: Path) -> None:
    torch.save(other_weights(), tmp_path / "a.pt")
    assert plan_gates(spec_of(tmp_path / "a.pt"), Fit(), NoParams()).regime == "finetune"
    plan = plan_of(tmp_path / "run", weights=planned(tmp_path / "a.pt"))
    assert plan.weights is not None
    elsewhere = plan.model_copy(update={"weights": plan.weights.model_copy(update={"path": "/b.pt"})})
    assert plan_differences(plan, elsewhere) == []
    assert plan.compute_fingerprint() == elsewhere.compute_fingerprint()
    goes_on, changes = revise(plan, elsewhere, allowed=())
    assert (goes_on.revision, changes) == (0, ())
    assert goes_on.weights == elsewhere.weights, "a run without a checkpoint loads them again, from where they are"
    other = plan.model_copy(update={"weights": plan.weights.model_copy(update={"sha256": "0" * 64})})
    assert [one.key for one in plan_differences(plan, other)] == ["weights.sha256"]


def test_a_file_that_is_not_there_or_a_folder_is_refused_by_the_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="there is no file"):
        plan_weights(spec_of(tmp_path / "a.pt"))
    with pytest.raises(PlanRefused, match="is a folder"):
        plan_weights(spec_of(tmp_path))


def test_a_checkpoint_must_be_the_one_that_its_meta_tells_of(tmp_path: Path) -> None:
    path, meta = tmp_path / "step-00000003.pt", tmp_path / "step-00000003.meta.json"
    torch.save(checkpoint_payload(other_weights()), path)
    meta.write_text(f'{{"sha256": "{sha256_file(path)}"}}')
    assert plan_weights(spec_of(path)) == planned(path)
    meta.write_text(f'{{"sha256": "{"0" * 64}"}}')
    with pytest.raises(PlanRefused, match=r"is not the checkpoint that step-00000003\.meta\.json tells of"):
        plan_weights(spec_of(path))
    meta.write_text("{")
    with pytest.raises(PlanRefused, match="beside it cannot be read"):
        plan_weights(spec_of(path))
