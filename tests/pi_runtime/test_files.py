"""Atomic writing: whole or absent, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pi_runtime.errors import ConfigError
from pi_runtime.files import replacing, write_text


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path):
    def write_half():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    write_text(tmp_path / "a", "before")
    with pytest.raises(RuntimeError):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.{dead.pid}.00").touch()
    (tmp_path / f".a.{os.getpid()}.00").touch()
    (tmp_path / f".b.{dead.pid}.00").touch()
    write_text(tmp_path / "a", "after")
    assert {path.name for path in tmp_path.iterdir()} == {"a", f".a.{os.getpid()}.00", f".b.{dead.pid}.00"}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose a directory that is writable"):
        write_text(tmp_path / "file" / "a", "x")
