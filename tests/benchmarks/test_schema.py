"""results.json: a round trip, and one clear line for each way in which a file can be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import ResultsError
from benchmarks.schema import Results, load_results
from pi_runtime.errors import ConfigError, PiError


def test_saved_results_load_as_they_were(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == results


def test_document_has_the_names_of_the_contract(results: Results) -> None:
    document = json.loads(results.to_json())
    assert document["schema"] == 1
    assert set(document["model"]) == {"name", "dataset", "relu_total", "relu_budget", "relu_count"}
    assert {"baseline_test", "linearized_test", "secure"} <= set(document["accuracy"])
    secure = {"backend", "graph", "images", "agreement_with_plaintext", "max_abs_logit_error"}
    assert secure <= set(document["accuracy"]["secure"][0])
    row = document["rows"][0]
    assert {"backend", "graph", "relu_count", "network", "kind", "phase", "images", "rounds"} <= set(row)
    assert set(row["latency_s"]) == {"median", "min", "max", "runs"}
    assert set(row["sent_bytes"]) == {"client", "server", "dealer"}
    assert document["environment"]


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def damage(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return damage


def _twice(document: Any) -> None:
    document["rows"].append(document["rows"][0])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_set("schema", to=2), "schema 2"),
        (_set("rows", 0, "phase", to="warm-up"), "rows.0.phase"),
        (_set("rows", 0, "kind", to="guessed"), "rows.0.kind"),
        (_set("rows", 0, "sent_bytes", "client", to=-1), "rows.0.sent_bytes.client"),
        (_set("rows", 0, "latency_s", "median", to="fast"), "rows.0.latency_s.median"),
        (_set("rows", 0, "latency_s", "median", to=1e9), "min <= median <= max"),
        (_set("rows", 0, "unheard_of", to=1), "rows.0.unheard_of"),
        (_set("accuracy", "secure", 0, "agreement_with_plaintext", to=1.5), "agreement_with_plaintext"),
        (_set("accuracy", "secure", 0, "max_abs_logit_error", to=float("nan")), "max_abs_logit_error"),
        (_set("model", to=None), "model"),
        (_twice, "twice"),
    ],
)
def test_a_damaged_document_is_refused_by_the_name_of_the_damage(
    results: Results, tmp_path: Path, damage: Callable[[Any], None], names: str
) -> None:
    document = json.loads(results.to_json())
    damage(document)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ResultsError) as caught:
        load_results(path)
    assert names in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1', '"schema"'])
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match="results"):
        load_results(path)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="pi-pipeline bench"):
        load_results(tmp_path / "results.json")


def test_binary_rubbish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ResultsError, match="cannot read"):
        load_results(path)


def test_an_unwritable_place_is_one_line(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        results.save(tmp_path / "file" / "results.json")


def test_results_errors_are_errors_of_the_runtime() -> None:
    assert issubclass(ResultsError, PiError)
