#!/usr/bin/env bash
# One machine, all of its GPUs, with DeepSpeed's launcher.
#
#   bash one_node.sh instruct --hardware 8x80gb model=… data.folder=… out=…
#
# GPUS=4 takes four of them.
set -euo pipefail
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
exec deepspeed --num_gpus "$gpus" --module onellm.train.launch "$@"
