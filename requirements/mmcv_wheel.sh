#!/usr/bin/env bash
# Compiles mmcv and its operators against the PyTorch of an environment, and writes the wheel:
# mmcv_wheel.sh PYTHON mmcv==2.1.0 FOLDER
set -euo pipefail

python=$1 mmcv=$2 folder=$3
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# pip asks setup.py for the version as soon as it has unpacked the source. Where that fails, the
# source lies there all the same.
TMPDIR=$source pip download --no-clean --no-build-isolation --no-deps --no-binary :all: \
  -d "$source/archive" "$mmcv" || true
setup=$(compgen -G "$source/pip-*/*mmcv_*/setup.py") || {
  echo "mmfocal: the source of $mmcv cannot be had, see above." >&2
  exit 1
}

# mmcv 2.1.0 reads its version by exec, and from locals(), which exec in a function no longer
# changes from Python 3.13 on. Newer ones have no such line.
sed -i "s/return locals()\['__version__'\]/import runpy; \
return runpy.run_path(version_file)['__version__']/" "$setup"

# PyTorch's headers are C++20 from 2.14 on, and mmcv asks for C++17.
if "$python" -W ignore -c 'import sys, torch; sys.exit(torch.__version__ < (2, 14))'; then
  sed -i 's/-std=c++17/-std=c++20/' "$setup"
fi

MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}" \
  pip wheel -v --no-build-isolation --no-deps -w "$folder" "${setup%/setup.py}"
