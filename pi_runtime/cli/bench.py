"""The verb ``bench``, and what every verb that measures takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pi_runtime.cli.lists import split_names

if TYPE_CHECKING:
    from pi_runtime.budgets import Budget

BACKENDS = "plaintext,crypten,preset"
_COUNT = click.IntRange(min=1)


def bench_options(command: Any) -> Any:
    """What every verb that measures takes; turn it into arguments with :func:`take_bench_options`."""
    options = (
        click.option(
            "--backends",
            default=BACKENDS,
            show_default=True,
            help="to measure, separated by commas; crypten-unmasked, spu-cheetah and spu-semi2k as well",
        ),
        click.option("--images", default=50, show_default=True, help="test images for the secure accuracy"),
        click.option(
            "--simulated-images",
            type=click.IntRange(min=0),
            help="test images through the simulator of preset  [1000 where they have labels, else 0]",
        ),
        click.option(
            "--runs",
            default=3,
            show_default=True,
            help="timed inferences of one image, after a warm-up; asked for more later, it adds them",
        ),
        click.option("--party-threads", default=1, show_default=True, help="CPU threads of each party"),
        click.option(
            "--networks",
            default="loopback",
            show_default=True,
            help="loopback, lan, wan, mobile or bandwidth_mbps=50,rtt_ms=20, separated by commas",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_bench_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of :func:`bench_options`, checked now and not after a training; takes them out of ``options``.

    Raises:
        click.UsageError, ConfigError: a backend, a network or a number cannot be used.
    """
    from pi_runtime.backends import check_backend
    from pi_runtime.net.shaping import parse_profiles

    backends = split_names(options.pop("backends"))
    if not backends:
        raise click.UsageError("--backends names no backend")
    for name in backends:
        check_backend(name)
    counts = {name: options.pop(name) for name in ("images", "runs", "party_threads")}
    for name, count in counts.items():
        if count < 1:
            raise click.UsageError(f"--{name.replace('_', '-')} must be at least 1, got {count}")
    return {
        "backends": backends,
        "images": counts["images"],
        "runs": counts["runs"],
        "threads": counts["party_threads"],
        "networks": [profile.name for profile in parse_profiles(options.pop("networks"))],
        "simulated_images": options.pop("simulated_images"),
    }


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--run-dir", type=click.Path(path_type=Path), help="directory of a run, as `run` or `linearize` made it")
@click.option("--budgets", help="ReLU counts separated by commas; full: all, trained: the run's mask  [full,trained]")
@bench_options
@click.option(
    "--runs-on", metavar="NETWORK=COUNT", multiple=True, help="runs on a network, in place of --runs; repeatable"
)
@click.option(
    "--runs-of",
    metavar="BACKEND[@NETWORK]=COUNT",
    multiple=True,
    help="runs of a backend, in place of --runs; with --runs-on the fewer, unless it names the network; repeatable",
)
@click.option(
    "--budgets-of",
    metavar="BACKEND=COUNTS",
    multiple=True,
    help="which of --budgets a backend is measured at  [all]; repeatable",
)
@click.option(
    "--across-networks",
    metavar="BACKENDS",
    default="",
    help="those open on all networks together, whose runs take turns on them; the memory of each network adds up"
    "  [none: one network after the other]",
)
@click.option(
    "--no-warmup",
    metavar="BACKENDS",
    default="",
    help="those whose first inference is timed as well, where one takes minutes  [none: one inference before them]",
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="a rehearsal of preset, as `estimate` has it, takes turns with it; the report shows how far off it is",
)
@click.option("--sweeps", default=2, show_default=True, type=_COUNT, help="passes over all budgets; runs are divided")
@click.option("--at-once", default=1, show_default=True, type=_COUNT, help="budgets open together, as memory lets")
@click.option("--data", type=click.Path(path_type=Path), help="folder of images for ONNX files  [noise]")
@click.option("--image-size", default=32, show_default=True, help="of a built-in network, pixels")
@click.option("--classes", default=10, show_default=True, help="of a built-in network")
@click.option("--width", type=int, help="of a built-in network  [the paper's]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="of masks, weights and noise")
@click.option("--output", type=click.Path(path_type=Path), help="directory for results.json  [runs/bench-<models>]")
def bench(
    models: tuple[str, ...],
    run_dir: Path | None,
    budgets: str | None,
    runs_on: tuple[str, ...],
    runs_of: tuple[str, ...],
    budgets_of: tuple[str, ...],
    across_networks: str,
    no_warmup: str,
    rehearse: bool,
    sweeps: int,
    at_once: int,
    data: Path | None,
    image_size: int,
    classes: int,
    width: int | None,
    seed: int,
    output: Path | None,
    **options: Any,
) -> None:
    """Measure networks at several ReLU budgets on each backend.

    MODEL is an ONNX file, the directory of a run, or a built-in network with random weights (resnet18, wrn22). A budget
    without a trained mask takes a random mask, and the results say so. With --run-dir alone: the full and the
    linearized network of that run. The same command goes on where it stopped.

    Networks other than loopback are measured through a relay between network namespaces (Linux, as root). Elsewhere
    preset imitates them itself, and of the other backends a model is made from loopback and labelled so.
    """
    measured = take_bench_options(options)
    if not models and run_dir is None:
        raise click.UsageError("give a MODEL, or --run-dir")
    if models and run_dir is not None:
        raise click.UsageError("give either a MODEL or --run-dir; the directory of a run is a MODEL as well")
    runs_by_network = parse_counts("--runs-on", "NETWORK", runs_on, measured["networks"])
    runs_by_backend = parse_counts("--runs-of", "BACKEND", runs_of, measured["backends"], networks=measured["networks"])
    across = parse_names("--across-networks", across_networks, measured["backends"])
    unwarmed = parse_names("--no-warmup", no_warmup, measured["backends"])
    from pi_runtime import pipeline

    if run_dir is not None and budgets is None:
        if output is not None:
            raise click.UsageError("--output goes with a MODEL or --budgets; a run keeps its results beside its models")
        for name, given in (
            ("--runs-on", runs_on),
            ("--runs-of", runs_of),
            ("--budgets-of", budgets_of),
            ("--across-networks", across),
            ("--no-warmup", unwarmed),
            ("--rehearse", rehearse),
        ):
            if given:
                raise click.UsageError(f"{name} goes with a MODEL or --budgets")
        document = pipeline.bench_run(run_dir, **measured)
    else:
        from benchmarks.sole_writer import sole_writer
        from pi_runtime.budgets import parse_budgets
        from pi_runtime.cli.bench_models import BuiltIn, default_output, subject_files
        from pi_runtime.errors import ConfigError
        from pi_runtime.progress import progress_bars

        target = output or run_dir or default_output(models)
        wanted = None if budgets is None else parse_budgets(budgets)
        if run_dir is not None and not run_dir.is_dir():
            raise ConfigError(f"{run_dir} is no run directory; make one with `pi-pipeline run`")
        with sole_writer(target / "results.json"):
            with progress_bars() as progress:
                subjects = subject_files(
                    models or (str(run_dir),),
                    budgets=wanted,
                    budgets_of=parse_budgets_of(budgets_of, measured["backends"], wanted or ()),
                    images=measured.pop("images"),
                    simulated_images=measured.pop("simulated_images"),
                    data=data,
                    built_in=BuiltIn(image_size=image_size, classes=classes, width=width),
                    seed=seed,
                    output=target,
                    progress=progress,
                )
            document = pipeline.measure(
                subjects,
                target / "results.json",
                sweeps=sweeps,
                subjects_at_once=at_once,
                runs_on=runs_by_network,
                runs_of=runs_by_backend,
                across_networks=across,
                rehearse=rehearse,
                no_warmup=unwarmed,
                **measured,
            )
    click.echo(json.dumps(document))


def parse_names(option: str, text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names separated by commas, each of ``names``, which are measured.

    Raises:
        click.UsageError: one is not.
    """
    found = tuple(dict.fromkeys(split_names(text)))
    for name in found:
        if name not in names:
            raise click.UsageError(f"{option} must be of {', '.join(names)}, got {name!r}")
    return found


def parse_counts(
    option: str, kind: str, parts: Sequence[str], names: Sequence[str], networks: Sequence[str] = ()
) -> dict[str, int]:
    """Each ``NAME=COUNT`` as a count by name. kind: what the names are, for the message.

    networks: a name may have one of these behind it, as in ``preset@wan=8``.

    Raises:
        click.UsageError: a part is not that, or its name is none of ``names``, which are measured.
    """
    known = {*names, *(f"{name}@{network}" for name in names for network in networks)}
    wanted = f"{kind}[@NETWORK]" if networks else kind
    found: dict[str, int] = {}
    for part in parts:
        name, _, count = part.rpartition("=")
        if name not in known or not (count.isascii() and count.isdigit() and int(count) > 0):
            also = f" and {', '.join(networks)}" if networks else ""
            raise click.UsageError(f"{option} must be {wanted}=COUNT of {', '.join(names)}{also}, got {part!r}")
        found[name] = int(count)
    return found


def parse_budgets_of(
    parts: Sequence[str], backends: Sequence[str], budgets: Sequence[Budget]
) -> dict[str, tuple[Budget, ...]]:
    """Each ``BACKEND=COUNTS`` as budgets by backend.

    Raises:
        click.UsageError: a part is not that, or of a backend or budget that is not measured.
        ConfigError: a budget is none.
    """
    from pi_runtime.budgets import parse_budgets

    found: dict[str, tuple[Budget, ...]] = {}
    for part in parts:
        backend, _, counts = part.partition("=")
        if backend not in backends:
            raise click.UsageError(f"--budgets-of must be BACKEND=COUNTS of {', '.join(backends)}, got {part!r}")
        found[backend] = parse_budgets(counts)
        strange = [str(budget) for budget in found[backend] if budget not in budgets]
        if strange:
            raise click.UsageError(f"--budgets-of must name budgets of --budgets, got {', '.join(strange)} in {part!r}")
    return found


def add_bench_verb(group: click.Group) -> None:
    """Adds ``bench`` to ``group``."""
    group.add_command(bench)
