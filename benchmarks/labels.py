"""What a reader sees in the place of names."""

from __future__ import annotations

from benchmarks import units
from benchmarks.schema import LOOPBACK, Results, Subject

MASKS = {
    "all": "all ReLUs",
    "trained": "trained mask",
    "random": "random mask",
    "given": "mask as given",
}
WEIGHTS = {"trained": "trained weights", "random": "random weights", "given": "weights as given"}
IMAGES = {"test": "test images", "folder": "images of a folder", "noise": "noise"}


def subject_label(subject: Subject) -> str:
    """``all ReLUs``, ``linearized``, or the count; behind the network's name where several were measured."""
    owner, slash, _ = subject.name.rpartition("/")
    if subject.mask == "all":
        text = "all ReLUs"
    elif subject.name == "linearized":
        text = "linearized"
    else:
        text = units.count(subject.relu_count)
    return f"{owner}{slash}{text}"


def place(results: Results, network: str) -> str:
    """`` on wan``, where the results have several links to tell apart or another than loopback; else nothing."""
    return "" if results.networks == (LOOPBACK,) else f" on {network}"


def extremes(results: Results) -> tuple[Subject | None, Subject]:
    """Of the first model: the subject with all its ReLUs, where it was measured with fewer as well, and the smallest.

    The two are what a headline compares.
    """
    alike = [subject for subject in results.subjects if subject.model == results.subjects[0].model]
    smallest = min(alike, key=lambda subject: subject.relu_count)
    full = next((subject for subject in alike if subject.mask == "all" and subject.name != smallest.name), None)
    return full, smallest


def headline_subject(results: Results) -> Subject:
    """The subject that the page is about: the smallest under a trained mask, else the smallest."""
    trained = [subject for subject in results.subjects if subject.mask == "trained"]
    return min(trained, key=lambda subject: subject.relu_count) if trained else extremes(results)[1]
