#!/usr/bin/env bash
# Trains on the GPUs of one machine, or of several: dist_train.sh CONFIG GPUS [options of train.py]
#
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [options of train.py]" >&2; exit 2; }

config=$1 gpus=$2
here=$(cd "$(dirname "$0")" && pwd)
if [ "${NNODES:-1}" = 1 ]; then
  where=(--standalone)
else
  where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?}"
    --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
fi
"${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus" \
  "$here/train.py" "$config" --launcher pytorch "${@:3}" && exit
status=$?
# What torchrun has said above names the process that was the first to end.
echo "mmfocal: the job ended early (status $status). If checkpoints were written, resume" \
  "from the newest with: $0 ${*@Q} --resume" >&2
exit "$status"
