#!/usr/bin/env bash
# Runs a row of the README's tables again, from the raw log to the result file, in one command:
#     benchmarks/reproduce.sh nyc /path/to/raw/logs [flags of benchmarks.bench_quality]
# NAME is a suite of benchmarks.bench_quality. What is prepared or trained already is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?name of a suite, e.g. nyc}
raw=${2:?folder of the raw logs}
shift 2
python=${PYTHON:-python}
export PYTHONPATH=$PWD:$PWD/kernels
if [ ! -e "prepared/$name/meta.json" ]; then
    if [ "$name" = city ]; then
        [ -e city/log.csv.gz ] || "$python" -m stt_jax.generate --output=city
        "$python" -m stt_jax.prepare --flagfile=configs/prepare/city.flags
    else
        "$python" -m stt_jax.prepare --flagfile="configs/prepare/$name.flags" \
            --data_root="$raw" --output="prepared/$name"
    fi
fi
"$python" -m benchmarks.bench_quality --suite="$name" --data_root=prepared "$@"
"$python" -m benchmarks.tables
