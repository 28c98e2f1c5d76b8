#!/usr/bin/env bash
# Judges (tests) or times (dense) the kernels on a machine with one GPU, from a bare checkout and without a network.
#
#   benchmarks/gpu.sh tests | dense [options of benchmarks/gpu_tests.py or benchmarks/gpu_dense.py]
#
# Needed beforehand: Python >= 3.11 with torch >= 2.11, triton >= 3.6, numpy, setuptools >= 77, pip. PYTHON names
# another interpreter; lark is installed from the file LARK_WHEEL where that is set. Either command takes less than 8
# minutes; --help lists the options, and the docstrings of the two files say what is measured and how.
set -euo pipefail

what=${1:-}
case $what in
    tests | dense) shift ;;
    *)
        echo "usage: benchmarks/gpu.sh tests | dense [--json FILE] [--help] ..." >&2
        exit 2
        ;;
esac

python=${PYTHON:-python3}
install=("$python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps --no-index)
wheel=${LARK_WHEEL:+$(realpath "$LARK_WHEEL")}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n $wheel ]]; then
    "${install[@]}" "$wheel"
fi
"${install[@]}" --no-build-isolation -e .
"$python" -c 'import lark' 2>/dev/null || {
    echo "lark is missing, which reads the specs: LARK_WHEEL=path/to/lark.whl benchmarks/gpu.sh $what" >&2
    exit 2
}
exec "$python" "benchmarks/gpu_$what.py" "$@"
