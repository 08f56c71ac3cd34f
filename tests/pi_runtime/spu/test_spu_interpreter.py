"""Where SPU's Python is, and what is said where it is not. Needs no SPU."""

from __future__ import annotations

import sys

import pytest

from pi_runtime.backends import check_backend, open_backend
from pi_runtime.errors import BackendError
from pi_runtime.spu.interpreter import PINS, VARIABLE

RECIPE = "make it and name it: python3.11 -m venv spu-env && spu-env/bin/pip install spu==0.9.5 jax==0.4.34 "
BACKENDS = ["spu-cheetah", "spu-semi2k"]


@pytest.mark.parametrize("name", BACKENDS)
def test_without_a_python_of_spu_the_check_says_how_to_make_one(monkeypatch, name):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BackendError, match=f"{VARIABLE} does not name its Python; {RECIPE}"):
        check_backend(name)


def test_a_python_without_spu_is_refused_by_its_missing_package(monkeypatch):
    monkeypatch.setenv(VARIABLE, sys.executable)
    with pytest.raises(BackendError, match=f"must name a Python with spu 0.9.5, got .* with none; {RECIPE}"):
        check_backend("spu-semi2k")


def test_what_is_no_python_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(BackendError, match=f"{VARIABLE} must name a Python, got '.*absent'"):
        check_backend("spu-semi2k")


def test_a_backend_that_nobody_checked_fails_when_it_gets_its_model(monkeypatch, make_net, export):
    monkeypatch.delenv(VARIABLE, raising=False)
    model = export(make_net(), (1, 8, 8))
    with open_backend("spu-semi2k") as backend, pytest.raises(BackendError, match=f"export {VARIABLE}="):
        backend.prepare(model)


def test_the_recipe_has_every_version_that_is_asked_for(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BackendError) as caught:
        check_backend("spu-cheetah")
    assert all(f"{name}=={version}" in str(caught.value) for name, version in PINS.items())
