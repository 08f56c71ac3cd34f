"""The processor's text: known answers, of which two machines of one name and two generations differ."""

from __future__ import annotations

import pytest

from benchmarks.environment import cpu_text, describe_environment

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"


@pytest.mark.parametrize(
    ("cpuinfo", "text"),
    [
        (X86.format(1), "AMD EPYC (family 25, model 1)"),
        (X86.format(17), "AMD EPYC (family 25, model 17)"),
        ("processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: A Board\n", "A Board"),
        ("", None),
    ],
)
def test_the_processor_is_told_with_its_generation(cpuinfo, text):
    assert cpu_text(cpuinfo) == text


def test_this_machine_has_a_processor_and_what_it_can():
    name, _, capability = describe_environment(1).cpu.rpartition(", ")
    assert name
    assert capability
