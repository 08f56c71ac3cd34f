"""The comparison: its grid, its table by hand, and a driver that is killed and goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from linearize.compare import compare
from linearize.compare_figures import draw_figures
from linearize.compare_plan import cells, load_plan, plan_of_methods
from linearize.comparison import (
    FORMAT,
    BaselineRecord,
    CellRecord,
    Comparison,
    CostRecord,
    cell_record,
    read_comparison,
    spread,
    tabulate,
    to_csv,
    write_comparison,
)
from linearize.config import dump_config, load_config
from linearize.errors import CheckpointError, ConfigError, LinearizeError
from linearize.progress import Reporter
from linearize.published import PUBLISHED, published

PLANS = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))
TINY = """
network: {width: 4}
device: cpu
threads: 1
data: {limit: 100, crop_padding: 1}
baseline: {epochs: 1, batch_size: 25}
snl: {reference_budget: 1500, max_epochs: 2, l1_weight: 0.01, mask_lr: 0.1, batch_size: 25}
taylor: {cuts: 2, images: 50, finetune: {epochs: 1, batch_size: 25}}
bcd: {drc: 800, rt: 2, finetune: {epochs: 1, batch_size: 25}}
finetune: {epochs: 2, batch_size: 25}
"""
PLAN = """
base: base.yaml
overrides: {layer_culling: {images: 50}}
variants:
  random: {method: random_mask}
  pruned: {method: taylor, taylor: {statistic: absolute}}
budgets: [900, 300]
seeds: [3, 1]
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(TINY)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def record(
    variant: str, seed: int, test: float, *, budget: int = 100, layers: tuple[int, ...] = (60, 40)
) -> CellRecord:
    return CellRecord(
        variant=variant,
        method="snl",
        relu_budget=budget,
        seed=seed,
        relu_count=budget,
        last_val_accuracy=50.0,
        best_val_accuracy=None,
        best_val_epoch=None,
        last_test_accuracy=test,
        best_test_accuracy=None,
        search=CostRecord(forward_images=100 * (seed + 1), backward_images=10, seconds=1.5),
        finetune=CostRecord(forward_images=40, backward_images=40, seconds=2.5),
        layer_counts={f"relu{number}": count for number, count in enumerate(layers)},
        run_dir=f"cells/{variant}",
    )


def comparison(records: list[CellRecord]) -> Comparison:
    baseline = BaselineRecord(checkpoint="b.safetensors", relu_total=1000, val_accuracy=80.0, test_accuracy=75.0)
    return Comparison(
        format=FORMAT, plan={}, total_cells=len(records), baseline=baseline, cells=records, table=tabulate(records)
    )


def test_the_table_equals_a_worked_example() -> None:
    """70, 74 and 72 have mean 72 and sample deviation 2; 110, 210 and 310 search passes have mean 210."""
    records = [record("a", seed, test) for seed, test in enumerate([70.0, 74.0, 72.0])]
    records.insert(1, record("b", 0, 60.0, layers=(100, 0)))
    first, second = tabulate(records)
    assert (first.variant, first.seeds, second.variant, second.seeds) == ("a", 3, "b", 1)
    assert (first.last_test_accuracy.mean, first.last_test_accuracy.std) == (72.0, pytest.approx(2.0))
    assert (first.search_images.mean, first.search_images.std) == (210.0, pytest.approx(100.0))
    assert (first.finetune_images.mean, first.seconds.mean) == (80.0, 4.0)
    assert first.best_val_accuracy is None
    assert (second.last_test_accuracy.mean, second.last_test_accuracy.std) == (60.0, None)
    assert (first.nonempty_layers.mean, second.nonempty_layers.mean) == (2.0, 1.0)
    assert spread([1.0, 2.0]).std == pytest.approx(0.5**0.5)


def test_costs_of_stages_are_added() -> None:
    part = {"forward_images": 5, "backward_images": 2, "seconds": 0.5}
    stages = [{"cost": {"search": part, "finetune": part}}] * 3
    final = {"relu_count": 9, "val_accuracy": 1.0, "linearized_test_accuracy": 2.0, "layer_counts": {"a": 9}}
    cell = cell_record("v", load_config(), "cells/v", stages, final)
    assert cell.search == cell.finetune == CostRecord(forward_images=15, backward_images=6, seconds=1.5)
    assert (cell.best_val_accuracy, cell.best_test_accuracy) == (None, None)


def test_csv_has_dotted_columns_and_reads_back() -> None:
    rows = list(csv.DictReader(to_csv([record("a", 1, 70.5)]).splitlines()))
    assert rows[0]["search.forward_images"] == "200"
    assert rows[0]["layer_counts"] == "relu0=60 relu1=40"
    assert rows[0]["last_test_accuracy"] == "70.5"
    assert rows[0]["best_val_accuracy"] == ""


def test_comparison_files_are_checked_when_read(tmp_path: Path) -> None:
    written = comparison([record("a", 0, 70.0), record("a", 0, 66.0, budget=50)])
    write_comparison(tmp_path, written)
    assert read_comparison(tmp_path / "comparison.json") == written
    broken = json.loads((tmp_path / "comparison.json").read_text())
    broken["cells"][0]["last_test_accuracy"] = 101
    (tmp_path / "comparison.json").write_text(json.dumps(broken))
    with pytest.raises(
        CheckpointError, match=r"comparison\.json: no comparison of this program \(.*last_test_accuracy"
    ):
        read_comparison(tmp_path / "comparison.json")


def test_the_grid_has_every_run_once_with_its_settings(plan_file: Path) -> None:
    grid = cells(load_plan(plan_file), "b.safetensors")
    names = [cell.directory for cell in grid]
    assert names[:4] == ["random-900-seed3", "pruned-900-seed3", "random-300-seed3", "pruned-300-seed3"]
    assert len(set(names)) == 8
    last = grid[-1].config
    assert (last.method, last.relu_budget, last.seed) == ("taylor", 300, 1)
    assert (last.taylor.statistic, last.taylor.cuts, last.layer_culling.images) == ("absolute", 2, 50)
    assert {cell.config.baseline_from for cell in grid} == {"b.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("variants:", "variant:"), r"plan\.yaml: variants?: .*; see configs/compare/"),
        (("random:", "ran/dom:"), r"plan\.yaml: variants: .*the name 'ran/dom' must be letters, digits"),
        (("[900, 300]", "[900, 900]"), r"plan\.yaml: budgets: .*no value may come twice"),
        (("[900, 300]", "[]"), r"plan\.yaml: budgets: .*at least 1 item"),
        (("statistic: absolute", "statistik: absolute"), r"variant pruned: --taylor\.statistik: unknown key"),
        (("method: random_mask", "method: luck"), r"variant random: --method: input should be .*got 'luck'"),
    ],
)
def test_messages_about_a_plan(change: tuple[str, str], message: str, plan_file: Path) -> None:
    plan_file.write_text(plan_file.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        cells(load_plan(plan_file), "b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_of_this_project_loads_with_all_its_runs(path: Path) -> None:
    plan = load_plan(path)
    grid = cells(plan, "baseline.safetensors")
    assert len({cell.directory for cell in grid}) == len(plan.variants) * len(plan.budgets) * len(plan.seeds)
    assert len({dump_config(cell.config) for cell in grid}) == len(grid), "no two runs are the same"
    text = path.read_text()
    assert text.startswith("# ")
    assert (path.stem.endswith(("-digits", "-w16"))) != ("GPU" in text)


def test_every_plan_for_a_gpu_has_a_small_twin() -> None:
    names = {path.stem for path in PLANS}
    large = {name for name in names if not name.endswith(("-digits", "-w16"))}
    assert {f"{name.removesuffix('-cifar10')}-digits" for name in large} <= names
    assert large == {
        "methods-cifar10",
        "bcd-on-autorep",
        *(f"ablation-{key}" for key in ("drc", "rt", "adt", "finetune")),
    }


def test_unknown_methods_are_named() -> None:
    with pytest.raises(ConfigError, match=r"methods must be among autorep, bcd, .*, got 'luck'"):
        plan_of_methods(None, ["snl", "luck"], [10], [0])


def run_command(plan_file: Path, output: Path) -> list[str]:
    script = "from pi_runtime.cli.main import main; main()"
    return [sys.executable, "-c", script, "compare", "--plan", str(plan_file), "--output", str(output)]


def without_times(found: Comparison, output: Path) -> dict:
    document = json.loads(found.model_dump_json().replace(str(output), "OUT"))
    for cell in document["cells"]:
        cell["search"].pop("seconds")
        cell["finetune"].pop("seconds")
    for row in document["table"]:
        row.pop("seconds")
    return document


@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_an_undisturbed_one(plan_file: Path, tmp_path: Path) -> None:
    text = PLAN.replace("[900, 300]", "[300]").replace("[3, 1]", "[3]")
    text = text.replace(
        "budgets:", "  paper: {method: bcd}\n  eager: {method: bcd, bcd: {finetune_policy: always}}\nbudgets:"
    )
    plan_file.write_text(text)
    plan, undisturbed, output = load_plan(plan_file), tmp_path / "undisturbed", tmp_path / "killed"
    expected = compare(plan, undisturbed, Reporter(quiet=True))
    marks = ("cells/pruned-300-seed3/state/search", "cells/paper-300-seed3/snl.safetensors")
    for mark in marks:
        process = subprocess.Popen(run_command(plan_file, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (output / mark).exists():
            time.sleep(0.005)
        assert process.poll() is None, "it was to be killed at work"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    found = compare(plan, output, Reporter(quiet=True))
    assert without_times(found, output) == without_times(expected, undisturbed)
    assert read_comparison(output / "comparison.json") == found
    paper, eager = (output / "cells" / f"{name}-300-seed3" / "snl.safetensors" for name in ("paper", "eager"))
    assert paper.read_bytes() == eager.read_bytes(), "one reference network serves both"
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    compare(plan, output, Reporter(quiet=True))
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}, "nothing is run again"


def test_the_verb_runs_methods_on_a_given_baseline(plan_file: Path, tmp_path: Path) -> None:
    from pi_runtime.cli.main import cli

    base, output = str(plan_file.with_name("base.yaml")), tmp_path / "out"
    common = ["compare", "--config", base, "--budgets", "300"]
    first = CliRunner().invoke(
        cli, [*common, "--methods", "random_mask", "--output", str(output)], catch_exceptions=False
    )
    baseline = output / "baseline" / "baseline.safetensors"
    given = [*common, "--methods", "random_mask,layer_culling", "--seeds", "0,1", "--baseline", str(baseline)]
    second = CliRunner().invoke(cli, [*given, "--output", str(tmp_path / "again")], catch_exceptions=False)
    assert first.exit_code == second.exit_code == 0
    answer = json.loads(second.stdout.splitlines()[-1])
    assert [(row["variant"], row["relu_budget"], row["seeds"]) for row in answer["table"]] == [
        ("random_mask", 300, 2),
        ("layer_culling", 300, 2),
    ]
    found = read_comparison(tmp_path / "again" / "comparison.json")
    assert all(cell.relu_count == 300 == sum(cell.layer_counts.values()) for cell in found.cells)
    # 90 training images in batches of 25, 2 epochs.
    assert all(cell.finetune.forward_images == cell.finetune.backward_images for cell in found.cells)
    told = (tmp_path / "again" / "comparison.json").read_text()
    assert '"baseline": "baseline.safetensors"' in told
    assert str(tmp_path) not in told, "it can be published as it is"
    assert (tmp_path / "again" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_baseline_of_another_network_is_refused(plan_file: Path, tmp_path: Path) -> None:
    plan = plan_of_methods(plan_file.with_name("base.yaml"), ["random_mask"], [300], [0])
    compare(plan, tmp_path / "a", Reporter(quiet=True))
    baseline = str(tmp_path / "a" / "baseline" / "baseline.safetensors")
    wider = plan.model_copy(update={"baseline": baseline, "overrides": {"network.width": 8}})
    with pytest.raises(
        LinearizeError, match=r"not a baseline of this network .*its width is 4, not 8.*name another file"
    ):
        compare(wider, tmp_path / "b", Reporter(quiet=True))
    linearized = str(tmp_path / "a" / "cells" / "random_mask-300-seed0" / "linearized.safetensors")
    reduced = plan.model_copy(update={"baseline": linearized})
    with pytest.raises(LinearizeError, match=r"its relu_count is 300, not 1920"):
        compare(reduced, tmp_path / "c", Reporter(quiet=True))


@pytest.mark.parametrize("budgets", [(100,), (100, 50)])
def test_figures_are_drawn_with_published_points(budgets: tuple[int, ...], tmp_path: Path) -> None:
    records = [record(name, 0, 70.0, budget=budget) for name in "ab" for budget in budgets]
    written = draw_figures(comparison(records), tmp_path, "cifar10")
    assert [path.name for path in written] == ["accuracy.png", "relative.png"][: len(budgets)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_published_points_have_a_source_and_plausible_values() -> None:
    for curve in PUBLISHED:
        assert curve.source
        budgets = [budget for budget, _ in curve.points]
        assert budgets == sorted(set(budgets))
        assert all(0 < budget < 2000 and 30 < accuracy < 100 for budget, accuracy in curve.points)
    assert {curve.name for curve in published("cifar10")} >= {"SNL", "DeepReDuce", "BCD, authors' prototype"}


@pytest.mark.parametrize("variants", ["nothing", ","])
def test_variants_that_are_not_in_the_plan_are_refused(plan_file: Path, tmp_path: Path, variants: str) -> None:
    from pi_runtime.cli.main import cli

    given = ["compare", "--plan", str(plan_file), "--variants", variants, "--budgets", "300", "--output", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"--variants (must be among|names no variant)"):
        CliRunner().invoke(cli, given, catch_exceptions=False)
