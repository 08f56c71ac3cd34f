"""The bundle store under attack. Oracle: the invariant "no id is ever usable twice", checked after a kill at every
single line, by racing processes, and after restoring old copies."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap

import pytest

from pi_runtime.errors import ConfigError, LocalProtocolError
from pi_runtime.preset.store import BundleStore

KIND = {"model_id": "0" * 32, "graph_hash": "1" * 64, "batch": 4, "owner": "alice"}


def add(store, bundle_id=None, material=b"material"):
    bundle_id = bundle_id or secrets.token_hex(16)
    store.add(bundle_id, lambda file: file.write(material), **KIND)
    return bundle_id


@pytest.fixture
def store(tmp_path):
    with BundleStore(tmp_path / "store", "client") as store:
        yield store


KILL_AT_EVERY_LINE = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from pi_runtime.preset import store as files, store_marks as marks
    from pi_runtime.preset.store import BundleStore
    from pi_runtime.errors import LocalProtocolError

    KIND = {"model_id": "0" * 32, "graph_hash": "1" * 64, "batch": 4, "owner": "alice"}
    BUNDLE = "a" * 32

    def use(directory, last_line):
        left = last_line
        def on_line(frame, event, argument):
            nonlocal left
            if frame.f_code.co_filename not in (files.__file__, marks.__file__):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return on_line
        sys.settrace(on_line)
        store = BundleStore(directory, "client")
        store.add(BUNDLE, lambda file: file.write(b"material"), **KIND)
        with store.next_ready(**KIND) as lease:
            store.spend(lease.bundle.bundle_id)
            (directory / "used").touch()  # stands for the first masked byte
        sys.settrace(None)
        os._exit(0)

    def refused(use):
        try:
            use()
        except LocalProtocolError:
            return True
        return False

    root, kills, outcomes = Path(sys.argv[1]), 0, []
    while True:
        directory = root / str(kills)
        child = os.fork()
        if child == 0:
            use(directory, kills + 1)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        with BundleStore(directory, "client") as store:
            counts = store.counts()
            used = (directory / "used").exists()
            assert counts["reserved"] == 0, counts
            material = {path.stem for path in directory.iterdir() if path.suffix in (".part", ".material")}
            assert material == ({BUNDLE} if counts["ready"] else set()), material
            assert not (used and counts["ready"]), "a used bundle came back"
            if counts["ready"]:
                store.spend(BUNDLE)
            if sum(counts.values()):
                assert refused(lambda: store.spend(BUNDLE))
                assert refused(lambda: store.open_material(BUNDLE))
                assert refused(lambda: store.add(BUNDLE, lambda file: file.write(b"x"), **KIND))
                assert store.next_ready(**KIND) is None
        outcomes.append([counts["ready"], counts["spent"], used])
        kills += 1
    print(json.dumps(outcomes))
    """
)


def test_killed_at_every_line_no_id_is_usable_twice():
    # In memory where there is such a place: a killed process loses nothing there either, and hundreds of stores flush.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        done = subprocess.run(
            [sys.executable, "-c", KILL_AT_EVERY_LINE, directory], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    outcomes = [tuple(outcome) for outcome in json.loads(done.stdout)]
    # Not vacuous: kills fell before the bundle was added, while ready, when spent but unused, and after its use.
    assert set(outcomes) >= {(0, 0, False), (1, 0, False), (0, 1, False), (0, 1, True)}


RACE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from pi_runtime.preset.store import BundleStore
    KIND = {"model_id": "0" * 32, "graph_hash": "1" * 64, "batch": 4, "owner": "alice"}
    with BundleStore(Path(sys.argv[1]), "client") as store:
        print("ready", flush=True)
        for _ in sys.stdin:
            lease = store.next_ready(**KIND)
            if lease is None:
                print("none", flush=True)
                continue
            with lease:
                store.spend(lease.bundle.bundle_id)
                print(lease.bundle.bundle_id, flush=True)
    """
)


def test_two_processes_racing_for_fifty_bundles_get_disjoint_sets(store):
    ids = {add(store) for _ in range(50)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(store.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    taken = []
    for _ in range(26):  # a start together for each pair of bundles, so that neither process can be through alone
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        taken += [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate(timeout=120)
        assert racer.returncode == 0
    assert taken[-2:] == ["none", "none"]
    assert sorted(taken[:-2]) == sorted(ids)


@pytest.mark.parametrize("rolled_back", ["client", "server"])
def test_when_one_side_is_restored_in_place_the_other_refuses(tmp_path, rolled_back):
    client, server = (tmp_path / role for role in ("client", "server"))
    stores = {"client": client, "server": server}
    bundle_id = secrets.token_hex(16)
    for role, directory in stores.items():
        with BundleStore(directory, role) as store:
            add(store, bundle_id)
    backup = {path.name: path.read_bytes() for path in stores[rolled_back].iterdir()}
    for role in ("server", "client"):
        with BundleStore(stores[role], role) as store:
            store.spend(bundle_id)
    for name, content in backup.items():
        (stores[rolled_back] / name).write_bytes(content)
    other = "server" if rolled_back == "client" else "client"
    with BundleStore(stores[rolled_back], rolled_back) as store:
        assert store.counts()["ready"] == 1, "the restored side believes the bundle is unspent"
    with BundleStore(stores[other], other) as store, pytest.raises(LocalProtocolError, match="is spent"):
        store.spend(bundle_id)


def test_a_copied_store_and_a_restored_tree_are_refused(tmp_path):
    original, backup = tmp_path / "original", tmp_path / "backup"
    with BundleStore(original, "client") as store:
        add(store)
    shutil.copytree(original, backup)
    with pytest.raises(ConfigError, match="is a copy of a store"):
        BundleStore(backup, "client")
    shutil.rmtree(original)
    shutil.copytree(backup, original)
    with pytest.raises(ConfigError, match="is a copy of a store"):
        BundleStore(original, "client")


def test_a_database_restored_without_its_material_marks_the_bundle_spent(store):
    bundle_id = add(store)
    database = store.directory / "bundles.sqlite3"
    old = database.read_bytes()
    store.spend(bundle_id)
    store.close()
    database.write_bytes(old)
    with BundleStore(store.directory, "client") as restored:
        assert restored.counts() == {"reserved": 0, "ready": 0, "spent": 1}
