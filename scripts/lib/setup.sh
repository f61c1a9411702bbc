# Sourced by the scripts: makes .venv once, and believes it only if its last step was reached.
#
# setup_venv NAME EXTRAS: an environment .venv with the project installed (editable) and the
# given extras. The stamp .venv/.ready-NAME is written last and holds a hash of everything
# that the environment depends on; without a matching stamp the work is finished or redone.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="$root/.venv"

fail() {
    printf 'vidqa set-up: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${VIDQA_PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer with pip and venv was not found. Install it (Debian: apt-get install python3-venv)," \
        "or name one: VIDQA_PYTHON=/path/to/python3 ${0##*/}"
}

wanted_stamp() {
    # The path is part of it: a moved environment has dead links in its scripts.
    { printf '%s\n' "$root" "$1"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | sha256sum
}

is_ready() {
    local stamp="$venv/.ready-$1"
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp "$1")" ]
}

setup_venv() {
    local name="$1" extras="$2"
    is_ready "$name" && return
    # One at a time: a second run waits, then finds the work done.
    exec 9>"$root/.venv.lock"
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready "$name"; then install_into_venv "$name" "$extras"; fi
    exec 9>&-
}

install_into_venv() {
    local name="$1" extras="$2" python
    printf 'vidqa: setting up .venv (once, a few minutes and about 6 GB)...\n' >&2
    rm -f "$venv/.ready-$name"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)" || exit 1
        rm -rf "$venv"
        "$python" -m venv "$venv" >&2 || fail "the virtual environment .venv could not be made (disk full? see above)."
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint "$root/constraints.txt" --editable "$root$extras" >&2 9>&- ||
        fail "the packages could not be installed (see above). Check the network and the disk and run it again."
    wanted_stamp "$name" >"$venv/.ready-$name.partial"
    mv "$venv/.ready-$name.partial" "$venv/.ready-$name"
}
