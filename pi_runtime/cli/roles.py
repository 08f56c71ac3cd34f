"""The verbs of the `preset` backend between machines: ``serve``, ``deal``, ``prepare``, ``certs`` and ``demo``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_Command = TypeVar("_Command", bound=Callable[..., Any])

_threads = click.option(
    "--party-threads", default=1, show_default=True, type=_COUNT, help="CPU threads of the linear layers"
)
_listen = click.option("--listen", metavar="HOST:PORT", required=True, help="address to listen on; port 0: a free one")


def _peer_option(role: str, *, required: bool = False, note: str = "") -> Callable[[_Command], _Command]:
    """Where a role listens that this one calls, and which name it must have; the name goes to :func:`take_access`."""
    address = click.option(f"--{role}", metavar="HOST:PORT", required=required, help=f"address of the {role}{note}")
    name = click.option(
        f"--{role}-name", metavar="NAME", help=f"the {role} must have this name  [any {role} of the same CA]"
    )
    return lambda command: address(name(command))


server_option = _peer_option("server")
dealer_option = _peer_option("dealer")


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every role needs to meet the others; the command receives them as :class:`pi_runtime.preset.roles.Access`
    takes them."""
    options = (
        click.option("--certs", type=_PATH, help="directory of this party's certificate and key, for mutual TLS"),
        click.option("--insecure-loopback", is_flag=True, help="plain TCP instead, on loopback addresses only"),
        click.option("--name", help="name of this party  [the only certificate of its role]"),
        click.option(
            "--state",
            type=_PATH,
            help="directory of bundles and identity  [~/.local/state/pi-pipeline/<role>-<name>]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_access(options: dict[str, Any]) -> Any:
    """The :class:`pi_runtime.preset.roles.Access` of the options, which it takes out of ``options``."""
    from pi_runtime.preset.roles import Access

    pins = {name: options.pop(name, None) for name in ("server_name", "dealer_name")}
    return Access(**{name: options.pop(name) for name in ("certs", "insecure_loopback", "name", "state")}, **pins)


@click.command()
@click.option("--model", type=_PATH, required=True, help="ONNX file, or the directory of a run")
@_listen
@_peer_option("dealer", required=True, note=", which may start later")
@_threads
@click.option("--max-clients", default=16, show_default=True, type=_COUNT, help="clients served side by side")
@access_options
def serve(model: Path, listen: str, dealer: str, party_threads: int, max_clients: int, **options: Any) -> None:
    """Be the server: hold the weights and serve clients until SIGTERM."""
    from pi_runtime.preset import roles

    access = take_access(options)
    _answer(
        roles.serve(model, listen=listen, dealer=dealer, access=access, threads=party_threads, max_clients=max_clients)
    )


@click.command()
@click.option("--public", type=_PATH, required=True, help="the model's public graph, model.public.json")
@_listen
@_threads
@click.option("--max-peers", default=32, show_default=True, type=_COUNT, help="servers and clients side by side")
@access_options
def deal(public: Path, listen: str, party_threads: int, max_peers: int, **options: Any) -> None:
    """Be the dealer: know the public graph alone and deal bundles until SIGTERM.

    Run it on a machine that neither the server nor the clients control, and that cannot see their traffic.
    """
    from pi_runtime.preset import roles

    access = take_access(options)
    _answer(roles.deal(public, listen=listen, access=access, threads=party_threads, max_peers=max_peers))


@click.command()
@_peer_option("server", required=True)
@_peer_option("dealer", required=True)
@click.option("--count", default=1, show_default=True, type=_COUNT, help="bundles to make; each serves one inference")
@click.option("--batch", default=1, show_default=True, type=_COUNT, help="images of an inference")
@_threads
@access_options
def prepare(server: str, dealer: str, count: int, batch: int, party_threads: int, **options: Any) -> None:
    """Make bundles ahead of time, as the client; `infer` takes the next unspent one."""
    from pi_runtime.preset import roles

    access = take_access(options)
    _answer(roles.prepare(server, dealer, access=access, batch=batch, count=count, threads=party_threads))


@click.command()
@click.argument("directory", type=_PATH)
@click.option("--client", "clients", multiple=True, default=("client",), show_default=True, help="a client's name")
@click.option("--server", "servers", multiple=True, default=("server",), show_default=True, help="a server's name")
@click.option("--dealer", "dealers", multiple=True, default=("dealer",), show_default=True, help="a dealer's name")
@click.option("--days", default=365, show_default=True, type=_COUNT, help="days that the certificates hold")
def certs(
    directory: Path, clients: tuple[str, ...], servers: tuple[str, ...], dealers: tuple[str, ...], days: int
) -> None:
    """Make a CA and a certificate for each party in DIRECTORY; give each machine ca.pem and its own two files."""
    from pi_runtime.net.certs import make_certificates
    from pi_runtime.net.messages import Identity

    named = (("client", clients), ("server", servers), ("dealer", dealers))
    parties = [Identity(role, name) for role, names in named for name in names]
    written = make_certificates(directory, parties, days=days)
    _answer({"directory": str(directory), "written": [str(path) for path in written]})


@click.command()
@click.argument("model", type=_PATH)
@click.argument("images", nargs=-1, required=True, type=_PATH)
@click.option("--tls", is_flag=True, help="mutual TLS with certificates made for this run alone")
@click.option(
    "--network", default="loopback", show_default=True, help="profile to imitate: loopback, lan, wan, mobile or numbers"
)
@click.option("--top", default=3, show_default=True, type=_COUNT, help="labels to print an image")
@_threads
def demo(model: Path, images: tuple[Path, ...], tls: bool, network: str, top: int, party_threads: int) -> None:
    """Start client, server and dealer here and classify IMAGES with MODEL (an ONNX file or a run directory)."""
    from pi_runtime import inference

    options = {"tls": tls, "profile": network}
    _answer(inference.classify(model, images, backend="preset", threads=party_threads, top=top, options=options))


def add_preset_verbs(group: click.Group) -> None:
    """Adds the verbs of this module to ``group``."""
    for command in (serve, deal, prepare, certs, demo):
        group.add_command(command)


def _answer(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document))
