"""The command line. Verbs parse, build a config and call one function; what is heavy is imported inside them.

Progress and tables go to stderr. The last line on stdout is one JSON object. An error that a user can mend prints as
one line and exits with 1; a bug keeps its traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from linearize.torchrun import is_first, world_size
from pi_runtime.cli.bench import add_bench_verb, bench_options, take_bench_options
from pi_runtime.cli.compare import add_compare_verb
from pi_runtime.cli.estimate import add_estimate_verb
from pi_runtime.cli.options import GroupedCommand, config_options, read_config
from pi_runtime.cli.report import add_report_verb
from pi_runtime.cli.roles import access_options, add_preset_verbs, dealer_option, server_option, take_access
from pi_runtime.cli.simulate import add_simulate_verb

INTERRUPTED = 130  # what shells use for an end by Ctrl-C

_run_dir = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="directory of the run  [runs/<dataset>-<network>-<budget>-seed<n>]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pi-pipeline")
def cli() -> None:
    """From a trained image classifier to measured private inference.

    `pi-pipeline run --budget 6000` does everything on the embedded digits: trains a network, removes all but 6,000 of
    its ReLUs, exports it, runs it under two-party computation and reports what that costs. The other verbs are its
    steps.
    """


@cli.command(cls=GroupedCommand)
@_run_dir
@bench_options
@config_options
def run(run_dir: Path | None, **options: Any) -> None:
    """Train, linearize, export, measure and report; goes on where it stopped."""
    from pi_runtime import pipeline

    measured = take_bench_options(options)
    config = read_config(options)
    answer(pipeline.run(config, run_dir or pipeline.default_run_dir(config), **measured))


@cli.command(cls=GroupedCommand)
@_run_dir
@config_options
def train(run_dir: Path | None, **options: Any) -> None:
    """Train the baseline, the network with all its ReLUs."""
    from pi_runtime import pipeline

    config = read_config(options)
    answer(pipeline.train(config, run_dir or pipeline.default_run_dir(config)))


@cli.command(cls=GroupedCommand)
@_run_dir
@config_options
def linearize(run_dir: Path | None, **options: Any) -> None:
    """Remove ReLUs until the budget is met: baseline, SNL, block coordinate descent, finetuning.

    The run directory then holds linearized.safetensors and, of --method bcd, a line for each step (bcd.jsonl) and how
    often its blocks were accepted, as measured and as 1-(1-p)^RT predicts (acceptance.png).

    torchrun --nproc-per-node N -m pi_runtime linearize ... spreads the search of --method bcd over N processes.
    """
    from pi_runtime import pipeline

    config = read_config(options)
    document = pipeline.linearize(config, run_dir or pipeline.default_run_dir(config))
    if is_first():
        answer(document)


@cli.command()
@click.option("--run-dir", type=click.Path(path_type=Path), help="export the networks of this run")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="export this checkpoint alone")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("model.onnx"), help="with --checkpoint: file to write"
)
def export(run_dir: Path | None, checkpoint: Path | None, output: Path) -> None:
    """Write the pruned ONNX graph, the public graph and the CrypTen graph."""
    from pi_runtime import pipeline

    if (run_dir is None) == (checkpoint is None):
        raise click.UsageError("give either --run-dir or --checkpoint")
    if run_dir is not None:
        answer(pipeline.export_run(run_dir))
    elif checkpoint is not None:
        answer(pipeline.export_checkpoint(checkpoint, output, companions=True))


@cli.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="ONNX file, or the directory of a run, to run here")
@click.option(
    "--backend",
    default="plaintext",
    show_default=True,
    help="with --model: plaintext, preset, crypten, crypten-unmasked, spu-cheetah or spu-semi2k",
)
@click.option("--party-threads", default=1, show_default=True, help="CPU threads of each party")
@click.option("--port", type=int, help="TCP port for the backend's processes  [a free one]")
@click.option("--top", default=3, show_default=True, help="labels to print an image")
@server_option
@dealer_option
@click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(min=1), help="with --server: images a bundle"
)
@access_options
def infer(
    images: tuple[Path, ...],
    model: Path | None,
    backend: str,
    party_threads: int,
    port: int | None,
    top: int,
    server: str | None,
    dealer: str | None,
    batch: int,
    **options: Any,
) -> None:
    """Classify IMAGES (png, jpg, npy, or folders of them) and say what it cost.

    With --model every role runs here; with --server and --dealer this is the client of a model that runs elsewhere.
    """
    from pi_runtime import inference

    if model is not None and server is None and dealer is None:
        answer(inference.classify(model, images, backend=backend, threads=party_threads, port=port, top=top))
    elif model is None and server is not None and dealer is not None:
        access = take_access(options)
        answer(
            inference.classify_remotely(
                server, dealer, images, access=access, batch=batch, threads=party_threads, top=top
            )
        )
    else:
        raise click.UsageError("give either --model, or both --server and --dealer")


add_bench_verb(cli)
add_preset_verbs(cli)
add_report_verb(cli)
add_estimate_verb(cli)
add_simulate_verb(cli)
add_compare_verb(cli)


def answer(document: dict[str, Any]) -> None:
    """Prints the one JSON line that a verb ends with."""
    click.echo(json.dumps(document))


def main() -> None:
    """Entry point of ``pi-pipeline``: every error that a user can mend is one line on stderr and exit code 1."""
    try:
        _check_ranks()
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(INTERRUPTED)
    except _expected_errors() as error:
        _fail(str(error))
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _check_ranks() -> None:
    if world_size() > 1 and sys.argv[1:2] != ["linearize"]:
        raise click.UsageError("torchrun can start `linearize --method bcd` alone; start other verbs without it")


def _expected_errors() -> tuple[type[Exception], ...]:
    # Looked up only once something went wrong: `--help` must not wait for torch.
    from linearize.errors import LinearizeError
    from pi_runtime.errors import PiError

    return PiError, LinearizeError


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)
