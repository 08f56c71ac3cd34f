"""One-time use under attack: processes killed at each step, stores restored in place, two clients on one store.

Oracle: a log of what left each side. No bundle's input may leave a client twice, and no server may answer a bundle
twice, whatever the other side does.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pi_runtime.errors import RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.messages import Kind
from pi_runtime.preset import dealer_link
from pi_runtime.preset.client import PresetClient
from pi_runtime.preset.server import PresetServer

CLIENT_SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pi_runtime.net.channel import Channel
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity, Kind
from pi_runtime.preset.client import PresetClient
from pi_runtime.primitives.prg import PRG_ID
from pi_runtime.preset.store import BundleStore

moment, server, dealer, directory = sys.argv[1:]

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

spend, send_control, send_array = BundleStore.spend, Channel.send_control, Channel.send_array

def spending(store, bundle_id):
    if moment == "opened":
        kill()
    spend(store, bundle_id)
    if moment == "spent":
        kill()

def sending_control(channel, kind, **fields):
    send_control(channel, kind, **fields)
    if kind is Kind.OPEN and moment == "asked":
        kill()

def sending_array(channel, kind, *buffers, **options):
    send_array(channel, kind, *buffers, **options)
    if kind is Kind.INPUT and moment == "input":
        kill()
    if kind is Kind.CLIENT_ANSWER and moment == "answered":
        kill()

BundleStore.spend, Channel.send_control, Channel.send_array = spending, sending_control, sending_array
endpoint = Endpoint(Identity("client", "client"), prg=PRG_ID, insecure_loopback=True)
with BundleStore(Path(directory), "client") as store:
    PresetClient(endpoint, server=server, dealer=dealer, store=store).infer(np.ones((1, 1, 8, 8), np.float32))
"""

SERVER_SCRIPT = """
import os, signal, sys
from pathlib import Path
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.server import PresetServer
from pi_runtime.primitives.prg import PRG_ID
from pi_runtime.preset.store import BundleStore

moment, model, listen, dealer, state = sys.argv[1:]
spend = BundleStore.spend

def spending(store, bundle_id):
    if moment == "spent":
        spend(store, bundle_id)
    os.kill(os.getpid(), signal.SIGKILL)

BundleStore.spend = spending
endpoint = Endpoint(Identity("server", "server"), prg=PRG_ID, insecure_loopback=True)
server = PresetServer(load_onnx(Path(model)), endpoint, listen=listen, dealer=dealer, state=Path(state))
server.run()
"""


DEALER_SCRIPT = """
import sys, time
from pathlib import Path
from pi_runtime.graph import load_public
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity
from pi_runtime.preset import dealer
from pi_runtime.primitives.prg import PRG_ID

stops_at, public, listen = sys.argv[1:]
deal = dealer.deal

def stopping(*arguments):
    for number, delivery in enumerate(deal(*arguments), 1):
        if number == int(stops_at):
            print("standing still", flush=True)
            time.sleep(60)
        yield delivery

dealer.deal = stopping
endpoint = Endpoint(Identity("dealer", "dealer"), prg=PRG_ID, insecure_loopback=True)
party = dealer.Dealer(load_public(Path(public)), endpoint, listen=listen)
print(party.address, flush=True)
party.run()
"""


@pytest.fixture
def used(monkeypatch):
    """Bundles whose input left a client, and bundles that a server answered, in the order of events."""
    found = {"client": [], "server": []}
    opening = {}
    send_control, send_array, infer = Channel.send_control, Channel.send_array, PresetServer._open

    def control(channel, kind, **fields):
        if kind is Kind.OPEN:
            opening[channel] = fields["bundle_id"]
        send_control(channel, kind, **fields)

    def array(channel, kind, *buffers, **options):
        if kind is Kind.INPUT:
            found["client"].append(opening.pop(channel))
        send_array(channel, kind, *buffers, **options)

    def opened(server, client, bundle_id, batch):
        material = infer(server, client, bundle_id, batch)
        found["server"].append(bundle_id)
        return material

    monkeypatch.setattr(Channel, "send_control", control)
    monkeypatch.setattr(Channel, "send_array", array)
    monkeypatch.setattr(PresetServer, "_open", opened)
    return found


def assert_once(used):
    for side, bundles in used.items():
        assert len(bundles) == len(set(bundles)), f"{side} used a bundle twice"


def infer(client, parties):
    assert client.infer(parties.images(1)).shape == (1, 4)


# What the next client finds: before its mark is set a killed client may try the bundle again, and the server refuses.
@pytest.mark.parametrize("moment", ["asked", "opened", "spent", "input", "answered"])
def test_client_killed_at_each_step_of_the_handshake(parties, used, moment):
    client, _ = parties.client()
    client.prepare(1, 2)
    client.close()
    arguments = (moment, parties.server.address, parties.dealer.address, str(parties.directory / "client"))
    killed = subprocess.run([sys.executable, "-c", CLIENT_SCRIPT, *arguments], timeout=60)
    assert killed.returncode == -9
    again, store = parties.client()
    infer(again, parties)
    infer(again, parties)
    assert_once(used)
    spent_before = len(used["server"]) - 2
    assert spent_before == 1  # the killed one's, though "asked" died before it could see the answer
    assert used["server"][0] not in used["client"]
    assert store.counts()["ready"] == 0


@pytest.mark.parametrize("moment", ["asked", "spent"])
def test_server_killed_around_its_mark(parties, used, moment):
    client, store = parties.client()
    client.prepare(1)
    first = bundle_ids(store)
    client.close()
    address = parties.server.address
    parties.stop(parties.server)
    script = (moment, parties.directory / "m.onnx", address, parties.dealer.address, parties.directory / "server")
    doomed = subprocess.Popen([sys.executable, "-c", SERVER_SCRIPT, *map(str, script)])
    try:
        with pytest.raises(Exception, match="server"):
            client.infer(parties.images(1))
        assert doomed.wait(30) == -9
    finally:
        doomed.kill()
        doomed.wait()
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    parties.start_server(address)
    infer(client, parties)
    assert_once(used)
    assert first.isdisjoint(used["client"])


@contextmanager
def dealer_process(parties, address, *, stops_at=0):
    """A dealer of its own; it says so and stands still before the delivery ``stops_at`` of a bundle (0: never)."""
    parties.graph.save_public(parties.directory / "m.public.json")
    arguments = (stops_at, parties.directory / "m.public.json", address)
    command = [sys.executable, "-c", DEALER_SCRIPT, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        parties.dealer = SimpleNamespace(address=process.stdout.readline().strip())
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("delivery", [1, 2, 4])
def test_dealer_killed_in_the_middle_of_a_bundle(idle_parties, used, monkeypatch, delivery):
    parties = idle_parties
    monkeypatch.setattr(dealer_link, "_RETRY_S", 0.1)
    failures = []
    with dealer_process(parties, "127.0.0.1:0", stops_at=delivery) as doomed:
        parties.start_server()
        client, store = parties.client()

        def prepare():
            with pytest.raises(RemoteProtocolError, match=r"dealer|server") as caught:
                client.prepare(1)
            failures.append(caught.value)

        preparing = threading.Thread(target=prepare)
        preparing.start()
        assert doomed.stdout.readline() == "standing still\n"
        doomed.send_signal(signal.SIGKILL)
        assert doomed.wait(10) == -signal.SIGKILL
        preparing.join(20)
    assert len(failures) == 1
    deadline = time.monotonic() + 10
    while parties.server._store.counts()["reserved"] and time.monotonic() < deadline:
        time.sleep(0.02)  # the server notices on another thread
    broken = store.counts(), parties.server._store.counts()
    assert broken == ({"reserved": 0, "ready": 0, "spent": 1},) * 2, "neither side ever offers the broken bundle"
    with dealer_process(parties, parties.dealer.address):
        infer(client, parties)
        infer(client, parties)
    assert_once(used)
    assert [len(used[side]) for side in ("client", "server")] == [2, 2]
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 3}


def bundle_ids(store):
    return {path.stem for path in store.directory.glob("*.material")}


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_bundle_whose_material_is_damaged_is_passed_over_for_good(parties, used, caplog, side):
    client, store = parties.client()
    client.prepare(1, 2)
    damaged = parties.pads_of(client, store, 1).bundle_id.hex()
    bundles = store.directory if side == "client" else parties.directory / "server" / "bundles"
    (bundles / f"{damaged}.material").write_bytes(b"damage")
    infer(client, parties)
    assert "a bundle is spent unused: its material is damaged" in caplog.text
    assert damaged not in used["client"]
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 2}
    infer(client, parties)
    assert_once(used)


def copy_contents(source, target):
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


def restore(directory, saved):
    """Puts the old contents back into the same files, as a restored backup does; what was erased comes back."""
    for path in saved.iterdir():
        with (directory / path.name).open("r+b" if (directory / path.name).exists() else "wb") as file:
            file.truncate(0)
            file.write(path.read_bytes())


def test_a_client_store_that_was_restored_in_place_is_refused_by_the_server(parties, used, tmp_path):
    client, store = parties.client()
    client.prepare(1)
    old = bundle_ids(store)
    copy_contents(store.directory, tmp_path / "saved")
    infer(client, parties)
    client.close()
    store.close()
    restore(store.directory, tmp_path / "saved")
    again, rolled_back = parties.client()
    assert rolled_back.counts()["ready"] == 1
    infer(again, parties)
    assert_once(used)
    assert used["client"][0] in old
    assert used["client"][1] not in old


def test_a_server_store_that_was_restored_in_place_finds_no_client(parties, used, tmp_path):
    client, _ = parties.client()
    client.prepare(1)
    bundles = parties.directory / "server" / "bundles"
    copy_contents(bundles, tmp_path / "saved")
    infer(client, parties)
    address = parties.server.address
    parties.stop(parties.server)
    restore(bundles, tmp_path / "saved")
    server = parties.start_server(address)
    assert server._store.counts()["ready"] == 1
    infer(client, parties)
    assert_once(used)
    assert len(used["client"]) == 2


def test_a_copied_client_store_is_refused_at_once(parties, tmp_path):
    client, store = parties.client()
    client.prepare(1)
    client.close()
    store.close()
    shutil.copytree(store.directory, parties.directory / "copy")
    with pytest.raises(Exception, match="is a copy of a store"):
        parties.client(store="copy")


def test_clients_of_two_names_on_one_store_take_their_own_bundles(parties, used):
    alice, store = parties.client("alice", store="shared")
    bob, _ = parties.client("bob", store="shared")
    alice.prepare(1, 2)
    bobs = alice.ready(1), bob.ready(1)
    infer(bob, parties)
    assert bobs == (2, 0)
    assert alice.ready(1) == 2, "bob's inference used up a bundle of his own"
    infer(alice, parties)
    assert_once(used)
    assert store.counts() == {"reserved": 0, "ready": 1, "spent": 2}


def test_two_clients_on_one_store_never_share_a_bundle(parties, used):
    first, store = parties.client()
    first.prepare(1, 4)
    second, _ = parties.client()
    failures = []

    def work(client: PresetClient):
        try:
            for _ in range(3):
                infer(client, parties)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert_once(used)
    assert len(used["client"]) == 6
    assert store.counts()["ready"] == 0
