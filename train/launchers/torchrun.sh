#!/usr/bin/env bash
# torchrun, on one machine or as one of several; run it on each of them.
#
#   bash torchrun.sh instruct --hardware 8x80gb model=… data.folder=… out=…
#   NODES=2 NODE=0 MASTER=node1 bash torchrun.sh align_image …       (on node1)
#   NODES=2 NODE=1 MASTER=node1 bash torchrun.sh align_image …       (on node2)
set -euo pipefail
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
exec torchrun \
    --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "$gpus" \
    --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" \
    --module onellm.train.launch "$@"
