#!/usr/bin/env bash
# What is worth knowing on a GPU, in about five minutes: whether everything is installed, the tests
# that need a GPU, and the benchmark of the backbones at the size that detectors are trained at.
#
#   tools/dev/gpu_check.sh [FOLDER]    results go there; work_dirs/gpu_check by default
#
# PYTHON   interpreter (.venv/bin/python if it is there, else python3)
# WORKERS  processes that share the tests (8, or as many as there are cores)
# STEPS    only some steps, in this order: doctor tests benchmark reference compiled. The last two
#          are left out by default: the reference takes a lot of memory, compiling some minutes.
set -euo pipefail

root=$(realpath "$(dirname "$0")/../..")
out=$(realpath -m "${1:-$root/work_dirs/gpu_check}")
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}  # also where mmfocal is not installed
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
cores=$(nproc)
workers=${WORKERS:-$((cores < 8 ? cores : 8))}
steps=${STEPS:-doctor tests benchmark}
focal='Focal-T, detection windows'

mkdir -p "$out"
trap 'echo "== After $SECONDS s. Results are in $out"' EXIT
failed=()
step() { # NAME COMMAND...: to the terminal, and to a file of that name; a failure stops no other.
  [[ " $steps " == *" $1 "* ]] || return 0
  printf '== %s\n' "$1"
  "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1")
}
benchmark() { # NAME OPTIONS...
  step "$1" "$python" -m tools.dev.benchmark --dtype bf16 --batch 2 --sizes 800x1344 "${@:2}" \
    --json "$out/$1.json" --markdown "$out/$1.md"
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
  || { echo 'There is no GPU to check: PyTorch sees none.' >&2; exit 1; }
step doctor "$python" tools/doctor.py
mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py)
# By group: the runs of training that some tests look at are made by a single process. Names of
# what fails are printed at once, should the time of the machine end.
step tests "$python" -m pytest -m gpu -n "$workers" --dist loadgroup -v --durations 10 \
  "${files[@]}"
benchmark benchmark --parts models memory op limits
benchmark reference --parts models memory --models "$focal, reference" "$focal" \
  --backends auto reference
benchmark compiled --parts models --models "$focal" "$focal, compiled" --compile
[ ${#failed[@]} = 0 ] || { echo "== Failed: ${failed[*]}"; exit 1; }
