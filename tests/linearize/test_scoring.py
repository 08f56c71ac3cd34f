"""Scores of masks on a tiny network; oracles are one image at a time and a search that scores every image."""

import itertools

import pytest
import torch
from torch import nn

from linearize.bcd_search import Candidate, Score, search
from linearize.config import BcdConfig, DataConfig
from linearize.data import Dataset, load_dataset
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.proposals import removals
from linearize.ranks import Ranks
from linearize.relu_mask import get_relu_mask, set_relu_mask
from linearize.rng import generator
from linearize.scoring import Reference, Scoring, margins, scored_images
from linearize.train import accuracy

TOTAL = 1920
IMAGES = 150


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=IMAGES), Reporter(quiet=True))


@pytest.fixture(scope="module")
def trained(data: Dataset) -> dict[str, torch.Tensor]:
    """Half of the ReLUs, trained to about 85 % of the training images."""
    model = build_network("resnet18", 4, 10, (1, 8, 8))
    set_relu_mask(model, torch.rand(TOTAL, generator=torch.Generator().manual_seed(0)) < 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs = data.normalise(data.train.images)
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), data.train.labels).backward()
        optimizer.step()
    assert 60 < accuracy(model, data, data.train) < 99.5
    return model.state_dict()


def network(state: dict[str, torch.Tensor]) -> nn.Module:
    model = build_network("resnet18", 4, 10, (1, 8, 8))
    model.load_state_dict(state)
    return model.eval()


def plain_errors(model: nn.Module, data: Dataset, kept: torch.Tensor, indices: torch.Tensor) -> int:
    """One image at a time, normalised by hand."""
    set_relu_mask(model, kept)
    errors = 0
    with torch.no_grad():
        for index in indices.tolist():
            x = data.train.images[index].float() / 255
            x = (x - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
            errors += int(model.eval()(x[None])[0].argmax()) != int(data.train.labels[index])
    return errors


def without(kept: torch.Tensor, block: int, seed: int) -> Candidate:
    settings = BcdConfig(rt=1, adt=1.0)
    return next(removals(kept, block, block, settings, torch.arange(TOTAL), None, generator(seed, "x")))


def test_margins_are_positive_exactly_where_argmax_is_right() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 5.0]])
    labels = torch.tensor([1, 0, 1, 0])
    values = margins(logits, labels)
    assert (values > 0).tolist() == (logits.argmax(1) == labels).tolist() == [True, True, False, False]
    assert values[[0, 3]].tolist() == [1.0, -5.0]
    assert 0 < values[1] < 1e-30, "a tie that argmax decides for the label"


def test_reference_has_every_image_by_margin(trained: dict, data: Dataset) -> None:
    model = network(trained)
    reference = Scoring(model, data, BcdConfig(), 0).measure(0)
    assert sorted(reference.indices.tolist()) == list(range(IMAGES))
    assert reference.margins.tolist() == sorted(reference.margins.tolist())
    assert reference.errors == plain_errors(model, data, get_relu_mask(model), reference.indices)
    assert reference.accuracy == pytest.approx(accuracy(model, data, data.train))


@pytest.mark.parametrize("scoring", ["full", "exact", "racing"])
def test_candidates_are_scored_on_one_draw_of_the_training_images(scoring: str, trained: dict, data: Dataset) -> None:
    settings = BcdConfig(scoring=scoring, score_images=40, racing_share=0.5)
    draws = [Scoring(network(trained), data, settings, seed=3) for _ in range(2)]
    chosen = scored_images(data, settings, 3).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 40 < IMAGES
    for step, scorer in enumerate(draws):
        reference = scorer.measure(step)
        assert len(reference.indices) == (20 if scoring == "racing" else 40)
        assert set(reference.indices.tolist()) <= set(chosen)
        assert scorer.images == 40
        model = network(trained)
        assert reference.errors == plain_errors(model, data, get_relu_mask(model), reference.indices)


@pytest.mark.parametrize("scoring", ["full", "exact"])
def test_scores_equal_a_plain_loop_over_images(scoring: str, trained: dict, data: Dataset) -> None:
    model = network(trained)
    kept = get_relu_mask(model)
    scorer = Scoring(model, data, BcdConfig(scoring=scoring, eval_batch_size=64), 0)
    reference = scorer.measure(0)
    for block in (10, 300):
        candidate = without(kept, block, block)
        score = scorer.judge(reference, reference.errors)(candidate, None, False)
        expected = plain_errors(model, data, candidate.kept, torch.arange(IMAGES))
        assert (score.errors, score.images) == (expected, IMAGES)
        assert score.drop == pytest.approx(100 * (expected - reference.errors) / IMAGES)
        assert score.accepted == (score.drop < 1.0)


def test_exact_scoring_stops_once_a_candidate_is_lost(trained: dict, data: Dataset) -> None:
    model = network(trained)
    kept = get_relu_mask(model)
    scorer = Scoring(model, data, BcdConfig(scoring="exact", eval_batch_size=20), 0)
    reference = scorer.measure(0)
    judge = scorer.judge(reference, reference.errors)
    candidate = without(kept, 300, 1)
    full = judge(candidate, None, False)
    beaten_by = Score(full.errors - 10, IMAGES, full.drop - 1, False)
    stopped = judge(candidate, beaten_by, False)
    assert beaten_by.errors <= stopped.errors < full.errors
    assert stopped.images < full.images
    assert (stopped.accepted, stopped.margins) == (False, None)
    assert judge(candidate, beaten_by, True) == full, "the last one may be asked for all"
    assert judge(candidate, Score(full.errors + 1, IMAGES, 99.0, False), False) == full


def descend(trained: dict, data: Dataset, scoring: str, seed: int, adt: float) -> tuple[list[torch.Tensor], int]:
    """Five steps of 60 without finetuning: the masks, and images scored."""
    model = network(trained)
    settings = BcdConfig(scoring=scoring, eval_batch_size=20, rt=4, adt=adt)
    scorer = Scoring(model, data, settings, seed)
    reference, masks, images = scorer.measure(0), [], 0
    for step in range(5):
        kept = get_relu_mask(model) if not masks else masks[-1]
        candidates = removals(kept, 60, 60, settings, torch.arange(TOTAL), None, generator(seed, step))
        result = search(candidates, scorer.judge(reference, reference.errors), Ranks(), fallback=True)
        reference = scorer.follow(reference, result, Ranks(), step)
        masks.append(get_relu_mask(model))
        images += result.images
    return masks, images


def test_exact_scoring_takes_the_masks_of_full_scoring_and_looks_at_fewer_images(trained: dict, data: Dataset) -> None:
    saved = scored = 0
    for seed, adt in itertools.product(range(2), (0.2, 2.0)):
        full, all_images = descend(trained, data, "full", seed, adt)
        exact, fewer_images = descend(trained, data, "exact", seed, adt)
        for ours, theirs in zip(exact, full, strict=True):
            assert torch.equal(ours, theirs)
        saved += all_images - fewer_images
        scored += all_images
    assert saved > 0.15 * scored


def test_racing_looks_at_its_share_and_scores_paired_flips(trained: dict, data: Dataset) -> None:
    model = network(trained)
    kept = get_relu_mask(model)
    settings = BcdConfig(scoring="racing", racing_share=0.3, racing_error=1e-9, eval_batch_size=40)
    scorer = Scoring(model, data, settings, 5)
    reference = scorer.measure(2)
    assert len(set(reference.indices.tolist())) == len(reference.indices) == 45
    assert reference.errors == plain_errors(model, data, kept, reference.indices)
    assert not torch.equal(reference.indices, scorer.measure(3).indices), "each step has a sample of its own"
    candidate = without(kept, 20, 1)
    score = scorer.judge(reference, reference.errors)(candidate, None, False)
    errors = plain_errors(model, data, candidate.kept, reference.indices)
    assert (score.errors, score.images) == (errors, 45), "so small an error lets no test decide"
    assert score.drop == pytest.approx(100 * (errors - reference.errors) / 45)
    assert score.accepted == (score.drop < 1.0)
    assert scorer.take_measured() == 90
    assert scorer.take_measured() == 0


def test_racing_ends_early_where_a_candidate_is_clearly_bad(trained: dict, data: Dataset) -> None:
    model = network(trained)
    settings = BcdConfig(scoring="racing", racing_share=1.0, eval_batch_size=256)
    scorer = Scoring(model, data, settings, 5)
    reference = scorer.measure(0)
    worst = Candidate(torch.zeros(TOTAL, dtype=torch.bool), 1.0, "uniform")
    score = scorer.judge(reference, reference.errors)(worst, None, False)
    assert score.images < IMAGES
    assert not score.accepted
    assert score.drop > 1.0


def test_reference_counts_nan_as_wrong() -> None:
    reference = Reference(torch.arange(3), torch.tensor([1.0, float("nan"), -1.0]))
    assert (reference.errors, reference.accuracy) == (2, pytest.approx(100 / 3))
