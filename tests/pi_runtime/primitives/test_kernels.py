"""The declaration of compiled kernels: one signature, read-only arguments, nothing compiled early, threads."""

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from pi_runtime.primitives.kernels import kernel, reads, writes


@kernel(reads("int64"), "int64", writes("int64"))
def add_constant(values: Any, constant: int, output: Any) -> None:
    """Add a constant."""
    for i in range(values.shape[0]):
        output[i] = values[i] + constant


def test_read_arguments_may_be_read_only_or_writable() -> None:
    output = np.zeros(3, np.int64)
    add_constant(np.frombuffer(np.arange(3).tobytes(), np.int64), 5, output)
    assert output.tolist() == [5, 6, 7]
    add_constant(np.arange(3), 6, output)
    assert output.tolist() == [6, 7, 8]
    assert add_constant.__doc__ == "Add a constant."


@pytest.mark.parametrize("values", [np.zeros(3, np.float64), np.zeros((3, 3), np.int64), np.zeros(6, np.int64)[::2]])
def test_another_kind_of_argument_is_refused(values: Any) -> None:
    with pytest.raises(TypeError):
        add_constant(values, 0, np.zeros(3, np.int64))


def test_first_calls_from_many_threads_agree() -> None:
    @kernel(reads("int64"), writes("int64"))
    def double(values: Any, output: Any) -> None:
        for i in range(values.shape[0]):
            output[i] = 2 * values[i]

    outputs = [np.zeros(100, np.int64) for _ in range(4)]
    threads = [threading.Thread(target=double, args=(np.arange(100), output)) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for output in outputs:
        assert output.tolist() == list(range(0, 200, 2))


def test_importing_the_gate_imports_no_numba() -> None:
    code = "import sys, pi_runtime.primitives.relu_gate; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
