# Sourced by scripts/bench and scripts/test: a virtual environment with this package installed.
# Usage: setup EXTRAS, e.g. setup "[joblib,slurm]" or setup "[test]"; afterwards $PYTHON is its interpreter.
# Installs only when pyproject.toml changed since the last time, so a second call starts at once.
setup() {
    local extras=$1 environment=${VPEFT_BENCH_VENV:-.venv} stamp wanted
    PYTHON=$environment/bin/python
    if [ ! -x "$PYTHON" ]; then
        local system=${VPEFT_BENCH_PYTHON:-python3}
        "$system" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: $system is older than Python 3.11; set VPEFT_BENCH_PYTHON=/path/to/python3.11" >&2
            return 1
        }
        echo "making the virtual environment $environment" >&2
        "$system" -m venv "$environment" || {
            echo "error: no virtual environment could be made; on Debian: apt install python3-venv" >&2
            return 1
        }
    fi
    stamp=$environment/installed${extras//[^a-z]/-}
    wanted=$(cksum <pyproject.toml)
    [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return 0
    echo "installing vpeft_bench$extras (PyTorch is large: a minute or more, about 5.5 GB)" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".$extras" || {
        echo "error: the installation failed; the same command tries again" >&2
        return 1
    }
    echo "$wanted" >"$stamp"
}
