"""The bundle store. Oracles: the marks and files that must be there, and errors by name."""

import mmap
import secrets
import sqlite3

import pytest

from pi_runtime.errors import ConfigError, LocalProtocolError
from pi_runtime.preset.store import BundleStore
from pi_runtime.preset.store_marks import Bundle

KIND = {"model_id": "0" * 32, "graph_hash": "1" * 64, "batch": 4, "owner": "alice"}


def add(store, bundle_id=None, material=b"material"):
    bundle_id = bundle_id or secrets.token_hex(16)
    store.add(bundle_id, lambda file: file.write(material), **KIND)
    return bundle_id


def files(directory):
    return sorted(path.name for path in directory.iterdir() if path.suffix in (".part", ".material"))


@pytest.fixture
def store(tmp_path):
    with BundleStore(tmp_path / "store", "client") as store:
        yield store


def test_a_bundle_goes_from_ready_to_spent_and_its_material_is_erased(store):
    bundle_id = add(store, material=b"x" * 5000)
    assert store.counts() == {"reserved": 0, "ready": 1, "spent": 0}
    with store.next_ready(**KIND) as lease:
        mapped = lease.map()
        assert store.spend(bundle_id) == lease.bundle
    assert lease.bundle.bundle_id == bundle_id
    assert (lease.bundle.owner, lease.bundle.batch, lease.bundle.material_bytes) == ("alice", 4, 5000)
    assert mapped[:] == b"x" * 5000, "the material outlives its file for who opened it before"
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    assert files(store.directory) == []
    assert store.next_ready(**KIND) is None


def test_bundles_come_in_order_and_only_of_the_wanted_kind(store):
    first, second = add(store), add(store)
    other = secrets.token_hex(16)
    store.add(other, lambda file: file.write(b"x"), **(KIND | {"batch": 1}))
    with store.next_ready(**KIND) as one, store.next_ready(**KIND) as two:
        assert [one.bundle.bundle_id, two.bundle.bundle_id] == [first, second]
        assert store.next_ready(**KIND) is None
    with store.next_ready(**KIND) as again:
        assert again.bundle.bundle_id == first, "a lease that was let go unspent is ready again"
    for changed in ({"model_id": "2" * 32}, {"graph_hash": "2" * 64}, {"batch": 2}, {"owner": "bob"}):
        assert store.next_ready(**(KIND | changed)) is None


def test_a_spent_id_can_never_be_spent_opened_or_added_again(store):
    bundle_id = add(store)
    store.spend(bundle_id)
    for use in (store.spend, store.open_material, lambda known: add(store, known)):
        with pytest.raises(LocalProtocolError, match=r"spent|added before"):
            use(bundle_id)
    with BundleStore(store.directory, "client") as reopened, pytest.raises(LocalProtocolError, match="is spent"):
        reopened.spend(bundle_id)


def test_unknown_and_malformed_ids_are_refused(store):
    with pytest.raises(LocalProtocolError, match="unknown here"):
        store.spend("0" * 32)
    with pytest.raises(LocalProtocolError, match="unknown here"):
        store.open_material("0" * 32)
    for bad in ("", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 32 + "\n"):
        with pytest.raises(LocalProtocolError, match="32 lower-case hex"):
            store.open_material(bad)


def test_a_leased_bundle_is_in_use_for_everyone_else(store):
    bundle_id = add(store)
    with (
        BundleStore(store.directory, "client") as other,
        store.open_material(bundle_id),
        pytest.raises(LocalProtocolError, match="in use"),
    ):
        other.open_material(bundle_id)


def test_a_map_that_somebody_still_has_does_not_keep_a_bundle_in_use(store):
    bundle_id = secrets.token_hex(16)
    with store.adding(bundle_id, **KIND) as file:
        file.truncate(8)
        written = mmap.mmap(file.fileno(), 8)
    with store.open_material(bundle_id) as lease:
        read = lease.map()
    with store.open_material(bundle_id) as lease:
        assert written[:] == read[:] == lease.map()[:]


def test_half_written_bundles_are_never_ready(store):
    bundle_id = secrets.token_hex(16)

    def write_half(file):
        file.write(b"half")
        with BundleStore(store.directory, "client") as other:  # its sweep must leave a living writer alone
            assert other.counts()["reserved"] == 1
            with pytest.raises(LocalProtocolError, match="is reserved"):
                other.spend(bundle_id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add(bundle_id, write_half, **KIND)
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    assert files(store.directory) == []
    with pytest.raises(LocalProtocolError, match="no material"):
        add(store, material=b"")


def test_the_database_itself_refuses_to_move_a_mark_back(store):
    bundle_id = add(store)
    store.spend(bundle_id)
    with sqlite3.connect(store.directory / "bundles.sqlite3") as database:
        for statement in ("UPDATE bundles SET state = 'ready'", "DELETE FROM bundles"):
            with pytest.raises(sqlite3.IntegrityError, match="a mark"):
                database.execute(statement)
    database.close()


def test_a_change_of_model_retires_that_servers_bundles_alone(store, caplog):
    caplog.set_level("INFO")
    old, held, new, elsewhere = (secrets.token_hex(16) for _ in range(4))
    changed = KIND | {"model_id": "2" * 32}
    for bundle_id, kind, server in ((old, KIND, "a"), (held, KIND, "a"), (new, changed, "a"), (elsewhere, KIND, "b")):
        with store.adding(bundle_id, server=server, **kind) as file:
            file.write(b"x")
    now = {"model_id": changed["model_id"], "graph_hash": changed["graph_hash"]}
    with store.open_material(held) as lease:
        assert store.retire("a", **now) == 1
        assert lease.map()[:] == b"x"
    assert files(store.directory) == sorted(f"{kept}.material" for kept in (held, new, elsewhere))
    assert store.counts() == {"reserved": 0, "ready": 3, "spent": 1}
    assert store.retire("a", **now) == 1
    assert store.retire("a", **now | {"graph_hash": "2" * 64}) == 1, "another graph of the same model"
    with pytest.raises(LocalProtocolError, match="is spent"):
        store.spend(old)
    with store.next_ready(**KIND) as lease:
        assert lease.bundle.bundle_id == elsewhere
    assert caplog.messages == ["1 bundles of models that are served no more were erased"] * 3


def test_what_was_half_made_is_cleared_and_counted_at_the_next_start(store, caplog):
    caplog.set_level("INFO")
    # As a killed process leaves it: the id taken, half a file, nobody's lock.
    with store._marks.transaction():
        store._marks.reserve(Bundle("a" * 32, "0" * 32, "1" * 64, 1, "alice"))
    (store.directory / f"{'a' * 32}.part").write_bytes(b"half")
    with BundleStore(store.directory, "client") as again:
        assert again.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    assert files(store.directory) == []
    assert caplog.messages == ["1 bundles that were half made or lost their material are spent"]


@pytest.mark.parametrize("damage", ["gone", "empty", "short", "long"])
def test_damaged_material_is_reported_spent_and_passed_over(store, caplog, damage):
    bundle_id, whole = add(store), add(store)
    path = store.directory / f"{bundle_id}.material"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "short": b"mat", "long": b"materials"}[damage])
    with store.next_ready(**KIND) as lease:
        assert lease.bundle.bundle_id == whole
    (warning,) = caplog.records
    assert "spent unused: its material is" in warning.getMessage()
    assert bundle_id not in warning.getMessage()
    with pytest.raises(LocalProtocolError, match="is spent"):
        store.open_material(bundle_id)
    assert store.counts() == {"reserved": 0, "ready": 1, "spent": 1}
    assert files(store.directory) == [f"{whole}.material"]


def test_damaged_material_that_is_asked_for_by_name_is_one_clear_error(store):
    bundle_id = add(store)
    (store.directory / f"{bundle_id}.material").write_bytes(b"mat")
    with pytest.raises(LocalProtocolError, match="is damaged: it must have 8 bytes; make new bundles"):
        store.open_material(bundle_id)


def test_a_damaged_foreign_or_other_roles_store_is_one_clear_error(tmp_path):
    with BundleStore(tmp_path / "mine", "client"):
        pass
    with pytest.raises(ConfigError, match="store of a client, not of a server"):
        BundleStore(tmp_path / "mine", "server")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "bundles.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="damaged or cannot be used"):
        BundleStore(tmp_path / "damaged", "client")
    (tmp_path / "foreign").mkdir()
    database = sqlite3.connect(tmp_path / "foreign" / "bundles.sqlite3")
    database.execute("CREATE TABLE other (x)")
    database.commit()
    database.close()
    with pytest.raises(ConfigError, match="is no store of bundles"):
        BundleStore(tmp_path / "foreign", "client")
    with BundleStore(tmp_path / "mine", "client"):
        database = sqlite3.connect(tmp_path / "mine" / "bundles.sqlite3")
        database.execute("PRAGMA user_version = 1")
        database.close()
    with pytest.raises(ConfigError, match="has format 1, this program 2; use the program that made it"):
        BundleStore(tmp_path / "mine", "client")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write the store"):
        BundleStore(tmp_path / "file", "client")


def test_a_damaged_page_is_a_clear_error(store):
    for _ in range(40):
        add(store)
    store.close()
    database = store.directory / "bundles.sqlite3"
    content = bytearray(database.read_bytes())
    content[1024:] = b"\xff" * (len(content) - 1024)
    database.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        BundleStore(store.directory, "client").counts()


def test_material_is_private(store):
    bundle_id = add(store)
    for path in (store.directory / f"{bundle_id}.material", store.directory / "bundles.sqlite3"):
        assert path.stat().st_mode & 0o077 == 0
