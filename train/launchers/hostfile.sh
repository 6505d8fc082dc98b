#!/usr/bin/env bash
# Several machines that reach each other by ssh without a password, listed in a hostfile:
#
#   node1 slots=8
#   node2 slots=8
#
#   HOSTFILE=hostfile bash hostfile.sh align_image --hardware 16x80gb model=… data.folder=… out=…
#
# The Python environment and 'out' must be at the same place on all of them; NCCL_* variables are
# passed on by DeepSpeed from its .deepspeed_env file.
set -euo pipefail
hostfile="${HOSTFILE:-hostfile}"
if [[ ! -r "$hostfile" ]]; then
    echo "error: $hostfile: expected a hostfile of lines like 'node1 slots=8'" >&2
    exit 2
fi
exec deepspeed --hostfile "$hostfile" --module onellm.train.launch "$@"
