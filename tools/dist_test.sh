#!/usr/bin/env bash
# Evaluates on several GPUs: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2; exit 2; }

config=$1 checkpoint=$2 gpus=$3
here=$(cd "$(dirname "$0")" && pwd)
if [ "${NNODES:-1}" = 1 ]; then
  where=(--standalone)
else
  where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?}"
    --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
fi
"${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus" \
  "$here/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
