#!/usr/bin/env bash
# Runs a row of the README's tables again, from the raw log to the result file, in one command:
#     benchmarks/reproduce.sh nyc /path/to/raw/logs [flags of benchmarks.bench_quality, e.g. --seeds=3]
# NAME is a suite of benchmarks.bench_quality. What is prepared or trained already is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?name of a suite, e.g. nyc}
raw=${2:?folder of the raw logs}
shift 2
python=${PYTHON:-python}
export PYTHONPATH=$PWD:$PWD/kernels
if [ "$name" = city ] && [ ! -e city/log.csv.gz ]; then
    "$python" -m stt_jax.generate --output=city
fi
for log in "$name" "${name}_more" "${name}_ids"; do # of rows whose training knows more, or less
    flags=configs/prepare/$log.flags
    if [ -e "$flags" ] && [ ! -e "prepared/$log/meta.json" ]; then
        [ "$name" = city ] || set_root=--data_root=$raw
        "$python" -m stt_jax.prepare --flagfile="$flags" ${set_root:+"$set_root"} --output="prepared/$log"
    fi
done
"$python" -m benchmarks.bench_quality --suite="$name" --data_root=prepared --seeds=5 "$@"
"$python" -m benchmarks.tables
