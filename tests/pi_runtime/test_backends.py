"""The registry of backends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pi_runtime.backends import BACKEND_NAMES, open_backend
from pi_runtime.errors import ConfigError


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_every_name_opens_a_backend_of_that_name(name):
    with open_backend(name, threads=1) as backend:
        assert backend.name == name


def test_an_unknown_name_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"backend must be one of plaintext, crypten.*, got 'gazelle'"):
        open_backend("gazelle")


def test_an_unknown_option_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match="backend plaintext has no option 'port'; it takes threads"):
        open_backend("plaintext", port=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": 0}, "threads must be >= 1"), ({"port": -1}, "port must be between 0 and 65535")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        open_backend("crypten", **options)


def test_the_registry_loads_no_backend_by_itself():
    script = "import sys, pi_runtime.backends; print({'torch', 'crypten', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
