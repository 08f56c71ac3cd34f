"""What can be measured on which network here; real backends through the relay. Oracle: the profile's numbers."""

from __future__ import annotations

import click
import numpy as np
import onnxruntime
import pytest

from pi_runtime.backends import open_backend
from pi_runtime.cli.bench import parse_budgets_of, parse_counts, parse_names
from pi_runtime.errors import ConfigError
from pi_runtime.export import export_onnx
from pi_runtime.net.link import why_no_relay
from pi_runtime.net.shaping import parse_profiles
from pi_runtime.networks import Networks

needs_namespaces = pytest.mark.skipif(why_no_relay() is not None, reason=str(why_no_relay()))
LINK = "bandwidth_mbps=200,rtt_ms=30"


@pytest.mark.parametrize(
    ("relay", "reached"),
    [
        (True, {"preset": "measured", "crypten": "measured", "plaintext": "no network"}),
        (False, {"preset": "measured", "crypten": "modelled", "plaintext": "no network"}),
    ],
)
def test_without_namespaces_only_the_shaped_channel_is_measured(relay, reached):
    networks = Networks(relay=relay)
    assert {backend: networks.reach(backend, "wan") for backend in reached} == reached
    assert networks.reach("crypten", "loopback") == "measured"


def test_without_namespaces_preset_is_told_the_profile_and_the_channel_is_checked():
    with Networks(relay=False).open(LINK) as network:
        assert network.shaping == "channel"
        assert network.options() == {"profile": LINK}
        check = network.check()
        assert network.dropped_packets() == 0
    assert check.rtt_ms >= 30
    assert max(check.bandwidth_mbps) < 220


@needs_namespaces
@pytest.mark.parametrize("name", ["preset", "crypten"])
def test_a_backend_through_the_relay_gives_plaintext_logits_and_pays_for_its_round_trips(make_net, tmp_path, name):
    export_onnx(make_net(0.5), (1, 8, 8), tmp_path / "m.onnx", metadata={"name": "small"})
    images = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    plain = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"input": images})[0]
    with Networks().open(LINK) as network, open_backend(name, **network.options()) as backend:
        assert network.shaping == "relay"
        backend.prepare(tmp_path / "m.onnx")
        logits, cost = backend.infer(images)
        assert network.dropped_packets() == 0
    # Tens of values are rounded at 12 fraction bits or more on the way to a logit.
    np.testing.assert_allclose(logits, plain, atol=64 * 2.0**-12)
    online = cost.phases["online"]
    assert online.rounds >= 4
    assert online.seconds > 0.9 * online.rounds * 0.030
    assert cost.phases["offline"].seconds > 0.030
    assert online.total_bytes > 0


def test_profiles_are_separated_by_commas_also_those_of_numbers():
    found = parse_profiles("loopback, rtt_ms=20,bandwidth_mbps=50,wan,bandwidth_mbps=50.0, rtt_ms=20 ,lan")
    assert [profile.name for profile in found] == ["loopback", "bandwidth_mbps=50,rtt_ms=20", "wan", "lan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "networks must name at least one of loopback"),
        ("lan,dialup", "got 'dialup'"),
        ("bandwidth_mbps=50", "got 'bandwidth_mbps=50'"),
        ("bandwidth_mbps=50,lan", "got 'bandwidth_mbps=50,lan'"),
    ],
)
def test_bad_lists_of_profiles_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_profiles(text)


def test_budgets_of_a_backend_are_some_of_those_that_are_measured():
    backends, budgets = ("preset", "spu-cheetah"), (6000, "full")
    assert parse_budgets_of(("spu-cheetah=full",), backends, budgets) == {"spu-cheetah": ("full",)}
    assert parse_budgets_of(("preset=full,6000",), backends, budgets) == {"preset": ("full", 6000)}
    for part, message in (
        ("crypten=full", "must be BACKEND=COUNTS of preset, spu-cheetah, got 'crypten=full'"),
        ("full", "must be BACKEND=COUNTS"),
        ("preset=50,6000", "must name budgets of --budgets, got 50 in"),
    ):
        with pytest.raises(click.UsageError, match=message):
            parse_budgets_of((part,), backends, budgets)
    with pytest.raises(ConfigError, match="a budget must be a count of ReLUs"):
        parse_budgets_of(("preset=some",), backends, budgets)


def test_backends_across_networks_are_some_of_those_that_are_measured():
    assert parse_names("--across-networks", " preset,plaintext,preset,", ("plaintext", "preset")) == (
        "preset",
        "plaintext",
    )
    assert parse_names("--across-networks", "", ("preset",)) == ()
    with pytest.raises(click.UsageError, match="--across-networks must be of preset, got 'crypten'"):
        parse_names("--across-networks", "preset,crypten", ("preset",))


def test_runs_on_a_network_are_counts_of_networks_that_are_measured():
    custom = "bandwidth_mbps=50,rtt_ms=20"
    parts, networks = (f"{custom}=2", "lan=8"), ("loopback", "lan", custom)
    assert parse_counts("--runs-on", "NETWORK", parts, networks) == {custom: 2, "lan": 8}
    for part in ("wan=2", "lan", "lan=0", "lan=-1", "lan=x", "=3", "2"):
        with pytest.raises(click.UsageError, match="--runs-on must be NETWORK=COUNT of loopback, lan, got"):
            parse_counts("--runs-on", "NETWORK", (part,), ("loopback", "lan"))


def test_runs_of_a_backend_may_be_on_one_network() -> None:
    names, networks = ("preset", "crypten"), ("loopback", "wan")
    found = parse_counts("--runs-of", "BACKEND", ("preset@wan=8", "crypten=2"), names, networks)
    assert found == {"preset@wan": 8, "crypten": 2}
    message = r"--runs-of must be BACKEND\[@NETWORK\]=COUNT of preset, crypten and loopback, wan, got 'preset@lan=8'"
    with pytest.raises(click.UsageError, match=message):
        parse_counts("--runs-of", "BACKEND", ("preset@lan=8",), names, networks)
