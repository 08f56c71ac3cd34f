"""Block coordinate descent on a tiny network; oracles are the budget, plain counts and the paper's loop."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from linearize.bcd import bcd
from linearize.bcd_finetune import finetune_images
from linearize.bcd_log import Acceptance, StepLog
from linearize.config import BcdConfig, DataConfig, DistillConfig, load_config
from linearize.data import Dataset, load_dataset
from linearize.errors import ConfigError
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import get_relu_mask, layer_counts, relu_count, set_relu_mask
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy

TOTAL = 1920


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=60), Reporter(quiet=True))


@pytest.fixture
def context(data: Dataset, tmp_path: Path) -> StageContext:
    return StageContext(data, torch.device("cpu"), 0, tmp_path / "state", Reporter(quiet=True))


def network(seed: int = 0) -> torch.nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=seed)


def with_relus(count: int, seed: int = 3) -> torch.nn.Module:
    model = network()
    kept = torch.zeros(TOTAL, dtype=torch.bool)
    kept[torch.randperm(TOTAL, generator=torch.Generator().manual_seed(seed))[:count]] = True
    set_relu_mask(model, kept)
    return model


@pytest.fixture
def masks_at_finetunes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """In place of finetuning, which then changes nothing, note the mask."""
    masks: list[torch.Tensor] = []

    def note(model, *args, **kwargs):
        masks.append(get_relu_mask(model))
        return []

    monkeypatch.setattr("linearize.bcd_finetune.finetune", note)
    return masks


def descend(model, budget: int, settings: BcdConfig, context: StageContext, tmp_path: Path) -> list[dict]:
    path = tmp_path / "bcd.jsonl"
    report = bcd(model, Teacher(network(), context.data), budget, settings, context, path)
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert report["steps"] == len(log)
    assert report["finetunes"] == sum(record["finetuned"] for record in log)
    assert relu_count(model) == budget
    return log


@pytest.mark.parametrize("policy", ["on_rejection", "always"])
@pytest.mark.parametrize(("start", "budget"), [(1000, 730), (1000, 1000), (900, 1)])
def test_meets_the_budget_exactly_and_never_gives_a_relu_back(
    policy: str, start: int, budget: int, context: StageContext, tmp_path: Path, masks_at_finetunes: list
) -> None:
    model = with_relus(start)
    masks_at_finetunes.append(get_relu_mask(model))
    settings = BcdConfig(drc=100, rt=2, adt=0.5, finetune_policy=policy)
    log = descend(model, budget, settings, context, tmp_path)
    masks_at_finetunes.append(get_relu_mask(model))
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(masks_at_finetunes))
    steps = math.ceil((start - budget) / 100)
    assert [record["step"] for record in log] == list(range(steps))
    assert [record["relu_count"] for record in log] == [max(budget, start - 100 * (i + 1)) for i in range(steps)]
    assert all(sum(record["layer_counts"].values()) == record["relu_count"] for record in log)
    assert all(record["finetuned"] == (policy == "always" or not record["accepted"]) for record in log)
    for before, after in itertools.pairwise(log):
        assert after["reference_accuracy"] == before["train_accuracy"], "the reference is measured anew"


def test_records_count_images(context: StageContext, tmp_path: Path) -> None:
    model = with_relus(700)
    finetuning = DistillConfig(epochs=2, batch_size=25, lr=0.05)
    settings = BcdConfig(
        drc=50,
        rt=3,
        finetune_policy="always",
        proposal="mixed",
        gradient_images=40,
        scoring="full",
        finetune=finetuning,
    )
    log = descend(model, 550, settings, context, tmp_path)
    assert accuracy(model, context.data, context.data.train) == pytest.approx(log[-1]["train_accuracy"])
    for number, record in enumerate(log):
        assert record["search_images"] == 60 * len(record["tries"])
        assert record["gradient_images"] == 40
        assert record["reference_images"] == (120 if number == 0 else 60)
        assert record["finetune_images"] == finetune_images(settings, context.data) == 2 * 50
        accepted = record["accepted"]
        assert record["acceptance"] == accepted / len(record["tries"])
        assert record["searched_accuracy"] == pytest.approx(
            record["reference_accuracy"] - min(t["drop"] for t in record["tries"][-1 if accepted else 0 :])
        )


def test_predicted_success_is_the_papers_formula() -> None:
    estimate = Acceptance()
    assert (estimate.probability, estimate.success(5)) == (None, None)
    estimate = estimate.after(4, 1).after(0, 0).after(2, 1)
    assert estimate.probability == pytest.approx((0.9 * 1 + 1) / (0.9 * 4 + 2))
    assert estimate.success(3) == pytest.approx(1 - (1 - estimate.probability) ** 3)
    assert Acceptance(**estimate.document()) == estimate


@pytest.mark.parametrize("scoring", ["full", "exact"])
def test_drift_takes_the_last_try_as_the_next_reference(
    scoring: str, context: StageContext, tmp_path: Path, masks_at_finetunes: list
) -> None:
    log = descend(
        with_relus(900), 300, BcdConfig(drc=100, rt=3, adt=0.1, drift=True, scoring=scoring), context, tmp_path
    )
    for before, after in itertools.pairwise(log):
        last = before["tries"][-1]
        assert last["images"] == 60
        assert after["reference_accuracy"] == pytest.approx(100 * (60 - last["errors"]) / 60)
    assert any(a["reference_accuracy"] != b["train_accuracy"] for b, a in itertools.pairwise(log)), "it drifts"


@pytest.mark.parametrize("proposal", ["gradient", "mixed"])
@pytest.mark.parametrize("shape", ["element", "channel", "row", "layer"])
def test_every_shape_meets_the_budget(
    proposal: str, shape: str, context: StageContext, tmp_path: Path, masks_at_finetunes: list
) -> None:
    settings = BcdConfig(drc=150, rt=2, proposal=proposal, shape=shape, gradient_images=20)
    log = descend(with_relus(900), 430, settings, context, tmp_path)
    assert all(record["block"] >= 150 for record in log[:-1])


def test_racing_scores_samples_and_says_so(context: StageContext, tmp_path: Path, masks_at_finetunes: list) -> None:
    settings = BcdConfig(drc=150, rt=3, scoring="racing", racing_share=0.25)
    log = descend(with_relus(900), 430, settings, context, tmp_path)
    for record in log:
        assert record["accuracy_images"] == 15
        assert record["search_images"] <= 15 * len(record["tries"])
        assert record["reference_images"] == (30 if record["step"] == 0 else 15)


def test_exchanges_keep_the_count_and_never_cost_training_accuracy(
    context: StageContext, tmp_path: Path, masks_at_finetunes: list
) -> None:
    settings = BcdConfig(drc=100, rt=2, give_back=64, exchange_steps=3, gradient_images=60)
    log = descend(with_relus(600), 400, settings, context, tmp_path)
    assert any(record["exchanged"] for record in log)
    at_budget = [record for record in log if record["block"] == 0]
    assert 1 <= len(at_budget) <= 3
    assert all(record["accepted"] for record in at_budget[:-1]), "the first that fails is the last"
    for record in at_budget:
        assert record["relu_count"] == 400
        assert record["train_accuracy"] >= record["reference_accuracy"]


def test_latency_objective_empties_layers_at_the_same_budget(
    context: StageContext, tmp_path: Path, masks_at_finetunes: list
) -> None:
    plain, latency = with_relus(600), with_relus(600)
    shared = {"drc": 100, "rt": 4, "proposal": "gradient", "gradient_images": 60}
    descend(plain, 200, BcdConfig(**shared), context, tmp_path)
    (tmp_path / "state" / "bcd.safetensors").unlink()
    log = descend(latency, 200, BcdConfig(**shared, objective="latency", round_worth=30.0), context, tmp_path)
    empty, empty_before = (sum(n == 0 for n in layer_counts(model).values()) for model in (latency, plain))
    assert empty >= empty_before + 3
    assert any(record["moved"] for record in log)
    for record in log:
        for earlier in log[: record["step"]]:
            for layer, count in earlier["layer_counts"].items():
                assert count > 0 or record["layer_counts"][layer] == 0, "an emptied layer stays empty"


def test_the_log_keeps_only_finished_steps(tmp_path: Path) -> None:
    path = tmp_path / "bcd.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    StepLog(path, write=False).keep_first(0)
    assert len(path.read_text().splitlines()) == 3
    log = StepLog(path, write=True)
    log.keep_first(1)
    log.append({"step": 1, "x": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 0}, {"step": 1, "x": 2}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bcd.drift": True, "bcd.scoring": "racing"}, "--bcd.scoring: must not be racing where bcd.drift is on, got"),
        ({"bcd.exchange_steps": 2}, "--bcd.exchange_steps: must be 0 where bcd.give_back is 0, .*, got 2"),
    ],
)
def test_settings_that_exclude_each_other_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)
