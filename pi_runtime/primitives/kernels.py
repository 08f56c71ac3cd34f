"""How compiled kernels are declared here: typed, compiled at the first call, cached on disk, free of the GIL.

Numba compiles a function again for every new combination of argument types; a read-only array (a received message, a
mapped file) is such a new type. So every kernel states its one signature here: arrays it only reads are declared
read-only, which accepts writable ones as well. Nothing of numba is imported, and nothing compiled, before a kernel is
called, so that a command line that computes nothing starts at once.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ArrayArgument:
    """A C-contiguous, aligned array argument: numpy name of the element type, number of dimensions, writable or not."""

    dtype: str
    ndim: int
    writable: bool


def reads(dtype: str, ndim: int = 1) -> ArrayArgument:
    """An array argument that the kernel only reads."""
    return ArrayArgument(dtype, ndim, writable=False)


def writes(dtype: str, ndim: int = 1) -> ArrayArgument:
    """An array argument that the kernel writes."""
    return ArrayArgument(dtype, ndim, writable=True)


class Kernel:
    """A function without a result, compiled for one signature at its first call; any thread may call it."""

    def __init__(self, function: Callable[..., None], arguments: tuple[ArrayArgument | str, ...]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._arguments = arguments
        self._compiled: Callable[..., None] | None = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> None:
        """Run the compiled function; raises TypeError where an argument is not of the declared type."""
        compiled = self._compiled or self._compile()
        compiled(*arguments)

    def _compile(self) -> Callable[..., None]:
        import numba
        from numba import types

        with self._lock:
            if self._compiled is None:
                signature = types.void(
                    *(
                        getattr(types, argument)
                        if isinstance(argument, str)
                        else types.Array(
                            getattr(types, argument.dtype), argument.ndim, "C", readonly=not argument.writable
                        )
                        for argument in self._arguments
                    )
                )
                self._compiled = numba.njit(signature, cache=True, nogil=True, boundscheck=False)(self._function)
            return self._compiled


def inlined(function: F) -> F:
    """Compile a function that only compiled functions call, or one caller with one set of types."""
    import numba

    return cast(F, numba.njit(cache=True, nogil=True, boundscheck=False)(function))


def kernel(*arguments: ArrayArgument | str) -> Callable[[Callable[..., None]], Kernel]:
    """Declare a kernel by its arguments in order: `reads(...)`, `writes(...)` or a scalar type's name ("int64")."""

    def declare(function: Callable[..., None]) -> Kernel:
        return Kernel(function, arguments)

    return declare
