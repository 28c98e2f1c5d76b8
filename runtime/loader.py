"""KernelSource -> module.

A module is executed from the text in memory, and Python's line cache, from which Triton reads a kernel's source, is
given the same text: what lies on disk under the file's name is for readers and for the interpreter's helper process.
"""

import importlib.util
import linecache
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from maskc.codegen.source import KernelSource
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import cache


@lru_cache(maxsize=1)
def triton_version() -> str:
    """The version of Triton; MaskUnsupportedError where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise MaskUnsupportedError("generated kernels need the package triton, which is not installed (Linux only)")
    return metadata.version("triton")


_OURS = "MASKC_TRITON_CACHE_DIR"
"""The variable that tells processes started by this one that TRITON_CACHE_DIR was set by maskc, not by the user."""


@lru_cache(maxsize=1)
def _triton_cache() -> None:
    """Points Triton's own cache into maskc's, unless the user has said where it is or nothing will be compiled."""
    given = os.environ.get("TRITON_CACHE_DIR")
    if given in (None, os.environ.get(_OURS)) and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton reads it before each use; torch's compiler, which shares the process, goes by it as well.
        os.environ["TRITON_CACHE_DIR"] = os.environ[_OURS] = str(cache.triton_folder())


_modules: dict[str, ModuleType] = {}


def load(source: KernelSource) -> ModuleType:
    """The kernel file as a module, loaded once per process."""
    if source.text not in _modules:
        path = cache.publish(source.text, triton_version())
        _modules[source.text] = _executed(source.text, path)
    return _modules[source.text]


def load_file(path: Path) -> ModuleType:
    """A kernel file of the cache as a module; MaskError if it does not hold what its name stands for."""
    return _executed(cache.read(path, triton_version()), path)


def _executed(text: str, path: Path) -> ModuleType:
    _triton_cache()
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    module = ModuleType(f"maskc_kernels_{path.stem}")
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
