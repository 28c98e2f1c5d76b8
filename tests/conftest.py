"""Settings of every test: one thread, a cache of its own, reproducible random cases."""

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# Before anything imports numpy, torch or triton. There is a test process per core, so threads would only fight.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

if "MASKC_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="maskc-tests-")
    os.environ["MASKC_CACHE_DIR"] = cache
    atexit.register(shutil.rmtree, cache, ignore_errors=True)

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")
