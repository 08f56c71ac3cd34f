"""The verbs as a user starts them: three processes, certificates, signals. Oracles: exit codes, JSON, onnxruntime."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from pi_runtime.cli.main import main
from pi_runtime.onnx_graph import load_onnx

COMMAND = [sys.executable, "-c", "from pi_runtime.cli.main import main; main()"]


def start(*arguments, **options):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


def document(process):
    return json.loads(finish(process)[0].splitlines()[-1])


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{bound.getsockname()[1]}" for bound in sockets]
    for bound in sockets:
        bound.close()
    return addresses


@pytest.fixture
def files(preset_graph, tmp_path):
    preset_graph.save_public(tmp_path / "m.public.json")
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).normal(size=(1, 8, 8)).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", pixels)
    return tmp_path


def test_three_processes_with_certificates_started_in_any_order(files):
    server_at, dealer_at = free_ports(2)
    made = document(start("certs", files / "certs", "--client", "alice", "--client", "bob"))
    assert len(made["written"]) == 2 + 2 * 4
    access = ("--certs", files / "certs")
    peers = ("--server", server_at, "--dealer", dealer_at, *access, "--name", "alice", "--state", files / "alice")
    preparing = start("prepare", *peers, "--count", 1)
    server = start(
        *("serve", "--model", files / "m.onnx", "--listen", server_at, "--dealer", dealer_at, *access),
        *("--dealer-name", "dealer"),
        *("--state", files / "state"),
    )
    dealer = start("deal", "--public", files / "m.public.json", "--listen", dealer_at, *access)
    try:
        prepared = document(preparing)
        assert (prepared["made"], prepared["ready"]) == (1, 1)
        named = ("--server-name", "server", "--dealer-name", "dealer")
        found = document(start("infer", *peers, *named, files / "a.npy", files / "b.npy"))
        _, refused = finish(start("infer", *peers, "--server-name", "other", files / "a.npy"), code=1)
        assert "server 'server' was met where server 'other' is due" in refused
    finally:
        for process in (server, dealer):
            process.send_signal(signal.SIGTERM)
    for process, role in ((server, "server"), (dealer, "dealer")):
        assert document(process)["role"] == role
    session = onnxruntime.InferenceSession(str(files / "m.onnx"))
    for entry, name in zip(found["images"], ("a", "b"), strict=True):
        plain = session.run(None, {"input": np.load(files / f"{name}.npy")[None]})[0][0]
        assert entry["labels"][0]["label"] == str(plain.argmax())
    assert found["cost"]["online"]["rounds"] == 2 * (1 + len(load_onnx(files / "m.onnx").relu_layers))


def test_demo_starts_all_three(files):
    found = document(start("demo", files / "m.onnx", files / "a.npy", "--tls"))
    plain = onnxruntime.InferenceSession(str(files / "m.onnx")).run(None, {"input": np.load(files / "a.npy")[None]})[0]
    assert found["images"][0]["labels"][0]["label"] == str(plain.argmax())
    assert found["cost"]["online"]["sent_bytes"]["dealer"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--model", "m.onnx", "--listen", "127.0.0.1:0", "--dealer", "127.0.0.1:1"], "give either a certs"),
        (
            ["deal", "--public", "m.public.json", "--listen", "0.0.0.0:0", "--insecure-loopback"],
            "plain TCP is for loopback addresses only",
        ),
        (["deal", "--public", "none.json", "--listen", "127.0.0.1:0", "--insecure-loopback"], "cannot read the public"),
        (["prepare", "--server", "here", "--dealer", "there", "--insecure-loopback"], "an address must be HOST:PORT"),
        (["infer", "a.npy", "--server", "127.0.0.1:1"], "give either --model, or both --server and --dealer"),
        (["infer", "a.npy"], "give either --model, or both --server and --dealer"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files)
    monkeypatch.setenv("XDG_STATE_HOME", str(files / "home"))
    monkeypatch.setattr(sys, "argv", ["pi-pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: ")
    assert message in err
