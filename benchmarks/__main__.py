"""All benchmarks, one after the other: `python benchmarks [--quick]` (hours without --quick)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ORDER = (
    "start.py",
    "restart.py",
    "faults.py",
    "cpu_training.py",
    "attention.py",
    "data.py",
    "exchange.py",
    "recipe.py",
    "levers.py",
    "numerics.py",
    "groups.py",
    "pipeline.py",
    "layouts.py",
    "memory.py",
)

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    codes = []
    for name in ORDER:
        print(f"== {name}", flush=True)
        codes.append(subprocess.call([sys.executable, str(here / name), *sys.argv[1:]]))
    sys.exit(max(codes))
