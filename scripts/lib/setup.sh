# Sourced by the scripts: makes .venv once, and believes it only if its last step was reached.
#
# setup_venv LEVEL: an environment .venv with the project installed (editable). Levels grow:
# run, test (adds the test extras), check (adds the dev extras). The stamp .venv/.ready-LEVEL is
# written last and holds a hash of everything that the environment depends on. While pip works
# no stamp is there and .venv/.installing is: pip itself believes a package that it was killed
# in the middle of, so an interrupted install is thrown away and made anew.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="$root/.venv"

fail() {
    printf 'vidqa set-up: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${VIDQA_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer with pip and venv was not found. Install it (Debian: apt-get install python3-venv)," \
        "or name one: VIDQA_PYTHON=/path/to/python3 ${0##*/}"
}

digest() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
}

wanted_stamp() {
    # The path is part of it: a moved environment has dead links in its scripts. So is the Python
    # that the links end at: a system upgrade changes it under our feet.
    { printf '%s\n' "$root"; readlink -f "$venv/bin/python"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | digest
}

is_ready() {
    local stamp="$venv/.ready-$1"
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp)" ]
}

setup_venv() {
    is_ready "$1" && return
    # One at a time: a second run waits, then finds the work done. pip inherits the lock, so
    # a pip that outlives a killed script is waited for as well.
    exec 9>"$root/.venv.lock" || fail "$root cannot be written to (see above), so no .venv can be made there."
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready "$1"; then install_into_venv "$1"; fi
    exec 9>&-
}

# Renamed first: a removal that is killed half-way must not leave something that looks like an environment.
discard_venv() {
    rm -rf "$venv-old"
    if [ -e "$venv" ] || [ -L "$venv" ]; then mv "$venv" "$venv-old"; fi
    rm -rf "$venv-old"
}

install_into_venv() {
    local level="$1" levels extras name python
    case "$level" in
    run) levels="run" extras="" ;;
    test) levels="run test" extras="[test]" ;;
    check) levels="run test check" extras="[test,dev]" ;;
    esac
    printf 'vidqa: setting up .venv (once, a few minutes and about 6 GB)...\n' >&2
    rm -f "$venv"/.ready-*
    if [ -e "$venv/.installing" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)" || exit 1
        discard_venv
        mkdir "$venv" && : >"$venv/.installing" && "$python" -m venv "$venv" >&2 ||
            fail "the virtual environment .venv could not be made (disk full? see above)."
    fi
    : >"$venv/.installing" || fail ".venv cannot be written to (disk full? see above)."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint "$root/constraints.txt" --editable "$root$extras" >&2 ||
        fail "the packages could not be installed (see above). Check the network and the disk and run it again."
    rm -f "$venv/.installing"
    for name in $levels; do
        wanted_stamp >"$venv/.stamp.partial" && mv "$venv/.stamp.partial" "$venv/.ready-$name" ||
            fail ".venv cannot be written to (disk full? see above)."
    done
}
