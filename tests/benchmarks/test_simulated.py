"""Simulated answers: oracle is the simulator itself, called by hand, and onnxruntime; real answers stay apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bench import Bench

from benchmarks.answers import answers
from benchmarks.results_file import load_results
from benchmarks.schema import Results
from benchmarks.simulated import simulated_accuracy
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.simulator import RandomPads, simulate


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_entry_is_what_the_simulator_and_onnxruntime_say(bench: Bench) -> None:
    file = bench.subjects[1]
    entry = simulated_accuracy(file, 5, threads=1)
    chosen = [0, 2, 5, 7, 10]  # five of thirteen at even distances
    program = compile_program(load_onnx(bench.linearized))
    pads = RandomPads(5, np.random.default_rng([0]))
    logits = simulate(program, quantise(program), bench.images[chosen], pads).logits
    plain = bench.plaintext(bench.linearized)[chosen]
    assert (entry.backend, entry.subject, entry.images) == ("preset", "linearized", 5)
    assert entry.max_abs_logit_error == pytest.approx(np.abs(logits - plain).max(), rel=1e-6)
    assert 0 < entry.max_abs_logit_error < 0.05
    assert entry.agreement_with_plaintext == np.mean(logits.argmax(1) == plain.argmax(1))
    assert entry.accuracy == np.mean(logits.argmax(1) == bench.labels[chosen])
    assert entry.wrapped_elements == 0
    assert simulated_accuracy(file, 99, threads=1).images == 13, "all there are"


def with_simulation(bench: Bench, count: int, *backends: str) -> Results:
    subjects = [replace(file, simulated_images=count) for file in bench.subjects]
    return bench.run(*backends, subjects=subjects)


def test_each_subject_is_simulated_where_preset_takes_part_and_stays_apart_from_processes(bench: Bench) -> None:
    results = with_simulation(bench, 6, "plaintext", "preset")
    assert [(e.subject, e.images) for e in results.simulated] == [("full", 6), ("linearized", 6)]
    assert {(e.backend, e.subject) for e in results.secure} == {
        (backend, subject) for backend in ("plaintext", "preset") for subject in ("full", "linearized")
    }
    assert load_results(bench.path) == results
    shown = [(entry.backend, entry.subject.name, entry.through, entry.images) for entry in answers(results)]
    assert shown == [
        ("plaintext", "full", "processes", 2),
        ("plaintext", "linearized", "processes", 11),
        ("preset", "full", "processes", 2),
        ("preset", "full", "simulator", 6),
        ("preset", "linearized", "processes", 11),
        ("preset", "linearized", "simulator", 6),
    ]
    assert all(entry.online_s is not None for entry in answers(results))


def test_more_images_are_simulated_again_and_no_fewer(bench: Bench) -> None:
    with_simulation(bench, 6, "preset")
    measured = len(bench.journal)
    assert {entry.images for entry in with_simulation(bench, 4, "preset").simulated} == {6}
    assert {entry.images for entry in with_simulation(bench, 9, "preset").simulated} == {9}
    assert len(bench.journal) == measured, "nothing is measured again for it"


def test_nothing_is_simulated_for_other_backends_or_no_images(bench: Bench) -> None:
    assert with_simulation(bench, 6, "crypten").simulated == ()
    assert with_simulation(bench, 0, "preset").simulated == ()
