"""Driver of the benchmarks: ``run.py NAME [--quick] [--json FILE]``.

A benchmark is a module beside this file with a function ``figures(quick) -> dict``: flat, named
figures with their unit in the name, ratios where two ways are compared in one run.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OTHERS = {"run", "__init__", "conftest"}


def benchmarks() -> list[str]:
    """Names of all benchmarks."""
    found = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in found if name not in OTHERS and not name.startswith("test_"))


def main() -> int:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one benchmark.")
    parser.add_argument("name", choices=benchmarks())
    parser.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    sys.path.insert(0, str(FOLDER))
    started = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu_cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "is_quick": options.quick,
    }
    figures = {**started, **import_module(options.name).figures(quick=options.quick)}
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
