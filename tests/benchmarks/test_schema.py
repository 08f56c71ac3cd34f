"""results.json: a round trip, and one clear line for each way in which a file can be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import ResultsError
from benchmarks.results_file import load_results
from benchmarks.schema import Results
from pi_runtime.errors import ConfigError, PiError


def test_saved_results_load_as_they_were(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == results


def test_document_has_the_names_that_others_read(results: Results) -> None:
    document = json.loads(results.to_json())
    assert document["schema"] == 2
    subject = {"name", "model", "dataset", "relu_total", "relu_budget", "relu_count", "mask", "weights", "images"}
    assert subject | {"test_accuracy", "test_images"} == set(document["subjects"][0])
    secure = {"backend", "subject", "images", "agreement_with_plaintext", "max_abs_logit_error"}
    assert secure <= set(document["secure"][0])
    row = document["rows"][0]
    assert {"backend", "subject", "network", "kind", "phase", "sweep", "images", "seconds", "rounds"} <= set(row)
    assert {"backend", "subject", "network", "phase", "sweep", "layer", "seconds"} <= set(document["layers"][0])
    assert set(row["sent_bytes"]) == {"client", "server", "dealer"}
    assert document["environment"]


def test_every_row_takes_a_line(results: Results) -> None:
    lines = results.to_json().splitlines()
    assert len([line for line in lines if '"phase": ' in line]) == len(results.rows) + len(results.layers)


def test_the_published_measurements_can_be_read() -> None:
    # The directory holds documents of other kinds as well; a measurement names its inputs.
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    files = [file for file in sorted(folder.glob("*.json")) if "inputs_sha256" in file.read_text(encoding="utf-8")]
    assert files
    for file in files:
        assert load_results(file).rows


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
        (_set("schema", to=1), "must be a results document of schema 2, got schema 1; run `pi-pipeline bench` again"),
        (_set("rows", 0, "phase", to="warm-up"), "rows.0.phase"),
        (_set("rows", 0, "kind", to="guessed"), "rows.0.kind"),
        (_set("rows", 0, "sent_bytes", "client", to=-1), "rows.0.sent_bytes.client"),
        (_set("rows", 0, "seconds", 0, to="fast"), "rows.0.seconds.0"),
        (_set("rows", 0, "seconds", 0, to=-0.1), "rows.0.seconds.0"),
        (_set("rows", 0, "seconds", to=[]), "rows.0.seconds"),
        (
            _set("rows", 0, "subject", to="unheard of"),
            "rows has the subject 'unheard of', which subjects does not name",
        ),
        (_set("layers", 0, "subject", to="unheard of"), "layers has the subject 'unheard of'"),
        (_set("secure", 0, "subject", to="unheard of"), "secure has the subject 'unheard of'"),
        (_set("subjects", 0, "mask", to="lucky"), "subjects.0.mask"),
        (_set("subjects", 0, "weights", to=None), "subjects.0.weights"),
        (_set("subjects", to=[]), "subjects"),
        (_set("rows", 0, "unheard_of", to=1), "rows.0.unheard_of"),
        (_set("secure", 0, "agreement_with_plaintext", to=1.5), "agreement_with_plaintext"),
        (_set("secure", 0, "max_abs_logit_error", to=float("nan")), "max_abs_logit_error"),
        (_set("schedule", to=None), "schedule"),
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
