"""The nightly run: ``run.py [--cases N] [--reader NAME] [--seed S] [--keep FOLDER]``.

Each reader works in a process of its own, so that a crash of a library is a fault of one case and
not the end of the run. A case is made from the seed, the reader's name and its number alone:
``--reader NAME --case K`` runs one again.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROW = "{:<24}{:>8}{:>8}{:>9}{:>8}{:>10}{:>9}{:>8}"
ADDED = ("cases", "valid", "refused", "faults", "wall_s")
COUNTED = (*ADDED, "slowest_s", "n_bytes")
MOST_KEPT = 12
"""Inputs that are kept of a reader, one a kind of fault and place at first."""


def main() -> int:
    arguments = _arguments()
    sys.path.insert(0, str(ROOT))
    if arguments.child:
        return _child(arguments)
    from tests.malformed.readers import READERS

    names = [reader.name for reader in READERS]
    chosen = [name for name in names if not arguments.reader or name in arguments.reader]
    if unknown := set(arguments.reader) - set(names):
        print(f"no reader named {', '.join(sorted(unknown))}\n  Known: {', '.join(names)}")
        return 2
    keep = Path(arguments.keep).resolve()
    print(ROW.format("reader", "cases", "valid", "refused", "faults", "slowest", "memory", "time"))
    n_faults = sum(row["faults"] for row in _rows(chosen, arguments, keep))
    print(f"{n_faults} faults; inputs are kept in {keep}" if n_faults else "no fault")
    return int(n_faults > 0)


def _rows(names: list[str], arguments: argparse.Namespace, keep: Path) -> Iterator[dict[str, Any]]:
    """One row a reader; printed as they come."""
    total: dict[str, dict[str, Any]] = {}
    left, first = list(names), arguments.case or 0
    while left:
        with tempfile.TemporaryDirectory(prefix="malformed-") as place:
            for row in _child_rows(left, first, arguments, Path(place), keep):
                known = total.setdefault(row["reader"], dict.fromkeys(COUNTED, 0))
                for key in COUNTED:
                    known[key] = known[key] + row[key] if key in ADDED else max(known[key], row[key])
                if row["is_done"]:
                    left.remove(row["reader"])
                    _print(row["reader"], known)
                    yield known
                else:
                    first = row["case"] + 1
                    known["faults"] += 1
                    print(f"  {row['reader']}: case {row['case']} ended the process", flush=True)
                    if row["case"] < 0:  # not even its valid files were made and read
                        left.remove(row["reader"])
                        yield known
            first = first if not row["is_done"] else arguments.case or 0


def _child_rows(
    names: list[str], first: int, arguments: argparse.Namespace, place: Path, keep: Path
) -> Iterator[dict[str, Any]]:
    """Rows of the readers that a process got through, and of the one that it died of."""
    stop = arguments.cases if arguments.case is None else arguments.case + 1
    command = [
        sys.executable,
        __file__,
        "--child",
        json.dumps(names),
        "--seed",
        str(arguments.seed),
        "--first",
        str(first),
        "--cases",
        str(stop),
        "--keep",
        str(keep),
        "--place",
        str(place),
        *(["--is-single"] if arguments.case is not None else []),
    ]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, env=_environment()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield json.loads(line) | {"is_done": True}
    if child.returncode:
        yield json.loads((place / "progress.json").read_text(encoding="utf-8")) | {"is_done": False}


def _print(name: str, row: dict[str, Any]) -> None:
    slowest, memory = f"{row['slowest_s'] * 1000:.0f} ms", f"{row['n_bytes'] >> 20} MiB"
    counts = (row[key] for key in ("cases", "valid", "refused", "faults"))
    print(ROW.format(name, *counts, slowest, memory, f"{row['wall_s']:.0f} s"), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Spoilt files to every reader of the package.")
    parser.add_argument("--cases", type=int, default=20_000, help="cases a reader")
    parser.add_argument("--reader", action="append", default=[], help="only this one; repeat it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, with its error")
    parser.add_argument("--keep", default=str(ROOT / "data" / "cache" / "malformed"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--is-single", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def _child(arguments: argparse.Namespace) -> int:
    import warnings

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tests.malformed.readers import READERS

    known = {reader.name: reader for reader in READERS}
    place, first = Path(arguments.place), arguments.first
    # libraries may print; the rows have a stream of their own
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for number, name in enumerate(json.loads(arguments.child)):
        row = _cases(known[name], place / str(number), first, arguments)
        print(json.dumps(row), file=rows, flush=True)
        first = arguments.first if arguments.is_single else 0
    return 0


def _cases(reader: Any, place: Path, first: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases of a reader."""
    from tests.malformed.bounds import Bench, forget_peak, peak_bytes

    row: dict[str, Any] = dict.fromkeys(COUNTED, 0) | {"reader": reader.name, "case": first}
    progress = place.parent / "progress.json"
    progress.write_text(json.dumps(row | {"case": -1}), encoding="utf-8")
    bench, started, shown = Bench(reader, place), time.monotonic(), dict[str, int]()
    forget_peak()
    before = peak_bytes()
    with progress.open("w", encoding="utf-8") as file:
        for number in range(first, _n_cases(reader, arguments)):
            row["case"] = number
            file.seek(0)
            file.write(json.dumps(row).ljust(300))
            file.flush()
            rng = random.Random(f"{arguments.seed} {reader.name} {number}")
            _, outcome = bench.case(rng)
            row["cases"] += 1
            row["slowest_s"] = max(row["slowest_s"], outcome.cpu_s)
            row["faults" if outcome.is_fault else outcome.kind] += 1
            if arguments.is_single:
                print(outcome, file=sys.stderr)
            if outcome.is_fault:
                key = f"{outcome.kind} {outcome.detail.strip().splitlines()[-1:]}"[:130]
                shown[key] = shown.get(key, 0) + 1
                if shown[key] == 1 and len(shown) <= MOST_KEPT:
                    again = random.Random(f"{arguments.seed} {reader.name} {number}")
                    folder = Path(arguments.keep) / reader.name / str(number)
                    _keep(bench, again, folder, outcome)
    for key, count in sorted(shown.items(), key=lambda item: -item[1]):
        print(f"  {reader.name}: {count} x {key}", file=sys.stderr, flush=True)
    return row | {"n_bytes": max(0, peak_bytes() - before), "wall_s": time.monotonic() - started}


def _n_cases(reader: Any, arguments: argparse.Namespace) -> int:
    return arguments.cases if arguments.is_single else int(arguments.cases * reader.share)


def _keep(bench: Any, rng: random.Random, folder: Path, outcome: Any) -> None:
    """The files of a case that failed, with what came of it."""
    target, content = bench.spoilt(rng)
    path = folder / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    (folder / "outcome.txt").write_text(f"{outcome.kind}\n{outcome.detail}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
