"""What the measurements on a GPU have in common: options, what they say of their machine, where they are kept."""

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskc

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command's options that all commands have."""
    assert doc is not None
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    found.add_argument("--sizes", choices=("full", "tiny"), default="full")
    found.add_argument("--seconds", type=float, default=400.0, help="nothing begins later")
    found.add_argument("--json", type=Path, help="by default in benchmarks/results")
    return found


def lacks(device: str) -> bool:
    """Whether a command asks for a GPU that is not there; says so."""
    missing = device == "cuda" and not torch.cuda.is_available()
    if missing:
        print("torch finds no GPU here; --device cpu tries the command on the CPU", file=sys.stderr)
    return missing


def machine(device: str) -> dict[str, Any]:
    """Device, driver and versions; on a CPU the device is its name, and there is no driver."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "driver": None,
        "maskc": maskc.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
        "triton": triton_version(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def triton_version() -> str | None:
    """None where triton is not installed."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def driver_version() -> str | None:
    """The driver by NVIDIA's own tool; None where that is missing or does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def results_path(name: str, found: Mapping[str, Any]) -> Path:
    """`benchmarks/results/NAME.json`, with the device's name on a GPU."""
    gpu = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-") if found["driver"] else ""
    return RESULTS / f"{'-'.join(filter(None, (name, gpu)))}.json"


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report, and the folder where there is none. Numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def one_line(error: BaseException) -> str:
    """The kind and the first line of an error, at most 300 characters."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(x) for name, x in value.items()}
        case list() | tuple():
            return [_finite(x) for x in value]
        case float():
            return value if abs(value) < float("inf") else None
        case _:
            return value
