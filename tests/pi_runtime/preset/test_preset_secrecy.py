"""What can be seen of secrets. Oracles: chi-square of what leaves each role, and a search of all that is printed."""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from types import FunctionType, MethodType

import numpy as np
import pytest

from pi_runtime.net.frames import FramePipe
from pi_runtime.net.messages import Kind
from pi_runtime.preset import dealer as dealing
from pi_runtime.preset import server as serving
from pi_runtime.preset.assembly import PendingBundle
from pi_runtime.preset.provider import DealerProvider
from pi_runtime.primitives import prg

SECRET = (
    Kind.WEIGHT_PAD,
    Kind.CLIENT_SHARE,
    Kind.LINEAR_SHARE,
    Kind.GATE_SHARE,
    Kind.INPUT,
    Kind.SERVER_OPEN,
    Kind.CLIENT_ANSWER,
)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_what_leaves_each_role_is_uniform_for_any_input(idle_parties, monkeypatch, value):
    captured = {kind: bytearray() for kind in SECRET}
    send = FramePipe.send

    def tap(pipe, kind, layer, payload, **options):
        if kind in captured:
            captured[kind] += b"".join(payload)
        send(pipe, kind, layer, payload, **options)

    monkeypatch.setattr(FramePipe, "send", tap)
    idle_parties.start_dealer()
    idle_parties.start_server()
    client, _ = idle_parties.client()
    client.infer(np.full((64, 1, 8, 8), value, np.float32))
    for kind, data in captured.items():
        counts = np.bincount(np.frombuffer(bytes(data), np.uint8), minlength=256)
        assert len(data) > 5 * 256, kind.name
        expected = len(data) / 256
        # Chi-square of 255 degrees of freedom has deviation 22.6: six of them, one false alarm in 10^8 or so.
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6, kind.name


def reachable(*roots):
    """Every object of this package that can be reached from ``roots``, and the plain values that they hold."""
    seen, found, waiting = set(), [], list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (str, int, float, bytes, np.ndarray, type(None), type)):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            waiting += list(value)
        elif isinstance(value, FunctionType):
            waiting += [cell.cell_contents for cell in value.__closure__ or ()]
        elif isinstance(value, MethodType):
            waiting.append(value.__self__)
        if type(value).__module__.startswith("pi_runtime."):
            found.append(value)
            names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
            waiting += [getattr(value, name, None) for name in names]
            waiting += list(value) if isinstance(value, tuple) else []
    return found


def forms(secret):
    """How 16 bytes could be printed: hex, base64, as a Python literal, or as two numbers."""
    words = [number for kind in ("<i8", "<u8") for number in np.frombuffer(secret, kind)]
    return {secret.hex(), b64encode(secret).decode()[:20], repr(secret)[2:-1], *map(str, words)}


HOLDERS = {
    "BundlePads",
    "BundleStore",
    "ClientInference",
    "Dealer",
    "GateMaterial",
    "Lease",
    "Marks",
    "PackedConv",
    "PendingBundle",
    "PresetClient",
    "PresetServer",
    "Seed",
    "ServedModel",
    "ServerMaterial",
    "Stream",
    "_Model",
}


def test_no_secret_is_in_a_repr_or_in_a_log(parties, monkeypatch, caplog, capfd):
    """Every class that holds a secret is met while it holds one; all that it prints is searched for all secrets."""
    caplog.set_level("DEBUG", "pi_runtime")
    seeds, held, making = [], [], []

    def watch(place, name, seen):
        """Hands the arguments of each call to ``seen`` before the call."""
        real = getattr(place, name)

        def watched(*arguments, **options):
            seen(*arguments)
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, watched)

    watch(prg.Seed, "__init__", lambda seed, secret: seeds.append(secret))
    watch(DealerProvider, "make", lambda *arguments: held.extend(arguments))
    watch(dealing, "deal", lambda *arguments: held.extend(arguments))
    watch(PendingBundle, "add_linear", lambda pending, *rest: making.append(pending))
    watch(serving, "run_server", lambda *arguments: held.extend(arguments[:3]))
    client, store = parties.client()
    images = parties.images(2)
    client.prepare(2, 2)
    with store.next_ready(owner=client.name, batch=2, **client.model.fields) as lease:
        client.reserve(2)
        held += [lease, client._reserved, client, store, parties.server, parties.dealer, parties.graph, *making]
        found = reachable(*held)
        client.infer(images)
        found += reachable(*held)
    kinds = {type(value).__name__ for value in found}
    assert kinds >= HOLDERS, HOLDERS - kinds

    integers = [weight for weight, _ in parties.server.model.weights.values()]
    arrays = [*integers, images]
    known = set().union(*map(forms, seeds), *(forms(array.tobytes()[:16]) for array in arrays))
    known = {form for form in known if len(form) > 6}  # a word such as 12 is everywhere
    assert len(known) > 20
    printed = [repr(value) + str(value) for value in found]
    out, err = capfd.readouterr()
    for text in (*printed, caplog.text, out, err):
        assert "array(" not in text, text[:300]
        assert not [form for form in known if form in text], text[:300]
    assert "images in" in caplog.text, "the log was caught"
