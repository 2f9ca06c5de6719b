#!/bin/bash
# Trains one run on several machines that ssh reaches, a process a machine.
# Command:  configs/launch/ssh.sh configs/nyc.flags host0 host1 ...
# Needs:    this repository at the same path on every machine, with the prepared log and the run
#           directory on a disk that all see; port 12345 of the first machine open to the others.
# Stopping: Ctrl-C here reaches every machine; all processes then write one checkpoint, and the same
#           command goes on from it.
set -euo pipefail
flagfile=${1:?the flagfile of the run, e.g. configs/nyc.flags}
shift
hosts=("$@")
(( ${#hosts[@]} )) || { echo "name the machines: $0 $flagfile host0 host1 ..." >&2; exit 2; }

for id in "${!hosts[@]}"; do
    # -tt: the far process gets our Ctrl-C.
    ssh -tt "${hosts[$id]}" "cd '$PWD' && python -m stt_jax.train --flagfile='$flagfile' \
        --coordinator=${hosts[0]}:12345 --num_processes=${#hosts[@]} --process_id=$id --mesh_data=-1" &
done
wait
