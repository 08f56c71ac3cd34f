"""A model as each role holds it: the public part that all agree on, and the server's weights."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pi_runtime.errors import ConfigError, GraphError, RemoteProtocolError
from pi_runtime.files import write_text
from pi_runtime.graph import Graph, parse_public
from pi_runtime.preset.linear_ops import Weights, multiply, pack, quantise
from pi_runtime.preset.program import Program, Step, compile_program
from pi_runtime.primitives.prg import SEED_BYTES, Seed
from pi_runtime.primitives.ring import I64

ID_BYTES = 16
_IDENTITY_FILE = "model.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicModel:
    """What client, server and dealer agree on.

    model_id: 32 hex digits, drawn by the server. graph: as it was exported, without parameters.
    """

    model_id: str
    graph: Graph
    program: Program

    @property
    def graph_hash(self) -> str:
        """64 hex digits: graph, kept elements, scales and rings."""
        return self.graph.public_hash

    @property
    def fields(self) -> dict[str, str]:
        """As a message names the model."""
        return {"model_id": self.model_id, "graph_hash": self.graph_hash}

    @classmethod
    def received(cls, model_id: str, graph_hash: str, text: bytes) -> Self:
        """From the peer's MODEL and GRAPH.

        Raises:
            RemoteProtocolError: the graph is none, cannot be run, or is not the one of ``graph_hash``.
        """
        if hashlib.sha256(text).hexdigest() != graph_hash:
            raise RemoteProtocolError("the server's graph has another hash than it announced")
        try:
            graph = parse_public(json.loads(text), origin="the server's graph")
            program = compile_program(graph)
        except (ValueError, RecursionError, GraphError) as error:
            raise RemoteProtocolError(f"the server's graph cannot be used: {error}") from error
        if graph.public_hash != graph_hash:
            raise RemoteProtocolError("the server's graph is not in its canonical form")
        return cls(model_id=model_id, graph=graph, program=program)


@dataclass(frozen=True)
class ModelIdentity:
    """The random name of a model and the seed of its weight pads D. D serves one W only."""

    model_id: str
    weight_seed: Seed = field(repr=False)


class ServedModel:
    """The server's model: public part, integer weights, and their products."""

    def __init__(self, graph: Graph, state: Path, *, threads: int = 1) -> None:
        """Quantises and packs the weights of ``graph``; ``state`` remembers the model's identity.

        Raises:
            GraphError: a weight or scale that the protocol cannot take.
            ConfigError: ``state`` cannot be written, or is damaged.
        """
        program = compile_program(graph)
        self.weights: Weights = quantise(program)
        self.program = program
        self.threads = threads
        identity = remember_identity(state, self.weights, graph.public_hash)
        self.weight_seed = identity.weight_seed
        public = graph.public()
        self.public = PublicModel(model_id=identity.model_id, graph=public, program=program)
        self.graph_text = public.public_json().encode()
        self._packed = {step.name: pack(step, self.weights[step.name][0]) for step in program.linear_steps}

    def product(self, step: Step, share: I64) -> I64:
        """``W * share`` of a linear step, exact mod 2^64."""
        return multiply(step, self._packed[step.name], share, self.threads)


def remember_identity(state: Path, weights: Weights, graph_hash: str) -> ModelIdentity:
    """The identity kept in ``state`` if it belongs to these weights and this graph, else a new one, kept from now on.

    What is kept beside it is a digest of the weights under a random key, which says nothing to who has no weights to
    try and no key.
    """
    path = state / _IDENTITY_FILE
    if path.exists():
        document = _read(path)
        key = bytes.fromhex(document["digest_key"])
        if hmac.compare_digest(_digest(key, weights, graph_hash), document["digest"]):
            return ModelIdentity(document["model_id"], Seed(bytes.fromhex(document["weight_seed"])))
    identity = ModelIdentity(secrets.token_hex(ID_BYTES), Seed.fresh())
    key = secrets.token_bytes(32)
    kept = {
        "model_id": identity.model_id,
        "weight_seed": identity.weight_seed.reveal().hex(),
        "digest_key": key.hex(),
        "digest": _digest(key, weights, graph_hash),
    }
    write_text(path, json.dumps(kept) + "\n", mode=0o600)
    return identity


def _read(path: Path) -> dict[str, str]:
    lengths = {"model_id": ID_BYTES, "weight_seed": SEED_BYTES, "digest_key": 32, "digest": 32}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        whole = all(len(bytes.fromhex(document[key])) == length for key, length in lengths.items())
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ConfigError(f"{path} is damaged; remove it, and the model gets a new identity")
    return {key: str(document[key]) for key in lengths}


def _digest(key: bytes, weights: Weights, graph_hash: str) -> str:
    mac = hmac.new(key, bytes.fromhex(graph_hash), "sha256")
    for name in sorted(weights):
        for array in weights[name]:
            mac.update(f"{name} {array.shape}".encode())
            mac.update(array.astype("<i8", copy=False).tobytes())
    return mac.hexdigest()
