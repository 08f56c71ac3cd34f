"""Runs a module of this package under a Python that has not got it: ``python -I bootstrap.py <module> <arguments>``.

The package is loaded from where this file is, and nothing else from there: were its directory on the path, SPU's Python
would find the numpy of another environment beside it.
"""

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "pi_runtime"


def load_package() -> None:
    """Makes ``pi_runtime`` and its modules importable."""
    root = Path(__file__).resolve().parents[1]
    spec = spec_from_file_location(PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None, "the package has an __init__.py"
    assert spec.loader is not None, "a file has a loader"
    module = module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load_package()
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__")
