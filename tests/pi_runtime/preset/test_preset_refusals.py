"""What a server refuses its clients, and a client its peers. Oracles: the error by name and code, and the stores."""

from __future__ import annotations

import threading

import pytest

from pi_runtime.errors import RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode, Kind
from pi_runtime.preset.assembly import Assembly


def test_a_bundle_belongs_to_the_client_that_made_it(parties):
    owner, store = parties.client("alice")
    owner.prepare(1)
    bundle_id = parties.pads_of(owner, store, 1).bundle_id.hex()
    found = parties.refusal_of(parties.connect("mallory"), Kind.OPEN, **parties.request(bundle_id=bundle_id))
    assert found.code is ErrorCode.BUNDLE
    assert "belongs to another client" in str(found)
    owner.infer(parties.images(1))
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}


def test_a_bundle_is_opened_once(parties):
    client, store = parties.client()
    client.prepare(1)
    bundle_id = parties.pads_of(client, store, 1).bundle_id.hex()
    client.infer(parties.images(1))
    found = parties.refusal_of(parties.connect(), Kind.OPEN, **parties.request(bundle_id=bundle_id))
    assert found.code is ErrorCode.BUNDLE
    assert "is spent" in str(found)
    parties.assert_serves(client)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_id": "0" * 32}, ErrorCode.MODEL),
        ({"graph_hash": "0" * 64}, ErrorCode.MODEL),
        ({}, ErrorCode.BUNDLE),
    ],
)
def test_requests_for_what_is_not_served_are_refused(parties, changes, code):
    assert parties.refusal_of(parties.connect(), Kind.OPEN, **parties.request(**changes)).code is code
    if code is ErrorCode.MODEL:
        assert parties.refusal_of(parties.connect(), Kind.PREPARE, **parties.request(**changes)).code is code


def test_a_bundle_is_for_its_batch_alone(parties):
    client, store = parties.client()
    client.prepare(2)
    bundle_id = parties.pads_of(client, store, 2).bundle_id.hex()
    found = parties.refusal_of(parties.connect(), Kind.OPEN, **parties.request(bundle_id=bundle_id))
    assert (found.code, "batch of 2" in str(found)) == (ErrorCode.MODEL, True)
    client.infer(parties.images(2))
    assert store.counts()["spent"] == 1


def test_a_bundle_too_large_is_refused(idle_parties):
    idle_parties.start_dealer()
    idle_parties.start_server(max_bundle_bytes=1_000_000)
    found = idle_parties.refusal_of(idle_parties.connect(), Kind.PREPARE, **idle_parties.request(batch=65_536))
    assert (found.code, "use a smaller batch" in str(found)) == (ErrorCode.MODEL, True)


def test_a_client_that_opens_nothing_is_refused_more_bundles(idle_parties):
    idle_parties.start_dealer()
    idle_parties.start_server(max_unspent=2)
    client, _ = idle_parties.client("alice")
    client.prepare(1, 2)
    with pytest.raises(PeerRefusal, match="2 bundles of this client are unspent, at most 2") as caught:
        client.prepare(1)
    assert caught.value.code is ErrorCode.BUSY
    idle_parties.client("bob")[0].prepare(1)
    client.infer(idle_parties.images(1))
    client.prepare(1)


def test_two_requests_at_once_cannot_both_be_the_last_that_is_allowed(idle_parties, monkeypatch):
    together, collecting = threading.Barrier(2), Assembly.collecting

    def at_once(assembly, *arguments):
        together.wait(10)  # whatever is looked at before this point was looked at by both
        return collecting(assembly, *arguments)

    idle_parties.start_dealer()
    idle_parties.start_server(max_unspent=1)
    monkeypatch.setattr(Assembly, "collecting", at_once)
    channels = [idle_parties.connect("alice") for _ in range(2)]
    for channel in channels:
        channel.send_control(Kind.PREPARE, **idle_parties.request())
    answers = []
    for channel in channels:
        try:
            answers.append(channel.recv_control(Kind.PREPARED).kind)
        except PeerRefusal as refusal:
            answers.append(refusal.code)
    assert sorted(answers, key=str) == sorted([Kind.PREPARED, ErrorCode.BUSY], key=str)


@pytest.mark.parametrize("kind", [Kind.PREPARED, Kind.DEALT, Kind.STORED])
def test_a_reply_about_another_bundle_is_no_reply(parties, monkeypatch, kind):
    client, store = parties.client()
    send_control = Channel.send_control

    def lie(channel, sent, **fields):
        if sent is kind and channel.peer.role == "client":
            fields["bundle_id"] = "0" * 32
        send_control(channel, sent, **fields)

    monkeypatch.setattr(Channel, "send_control", lie)
    with pytest.raises(RemoteProtocolError, match=f"{kind.name} is about another bundle"):
        client.prepare(1)
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
