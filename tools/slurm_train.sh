#!/usr/bin/env bash
# Trains under SLURM: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
#
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment. More
# GPUs than one node has are taken from several. For a job that is asked to end before its time is
# up, saves, and is started again by SLURM until it is done, see docs/training.md.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2; exit 2; }

partition=$1 job=$2 config=$3 work_dir=$4
here=$(cd "$(dirname "$0")" && pwd)
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
read -ra extra <<<"${SRUN_ARGS:-}"
srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  "${extra[@]}" "${PYTHON:-python}" -u "$here/train.py" "$config" --work-dir "$work_dir" \
  --launcher slurm "${@:5}"
