#!/usr/bin/env bash
# Makes the environment of one stack, or completes it: install.sh official|onedl ENV_FOLDER
#
# PYTHON            interpreter to build on (python3)
# TORCH_INDEX_URL   where pip looks for torch, such as PyTorch's own index of CPU builds
# PIP_FIND_LINKS    folders with wheels, looked into before anything is built
# MMFOCAL_CACHE     keeps the mmcv wheel that was built here (~/.cache/mmfocal)
set -euo pipefail

stack=$1 env=$2
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."

say() { printf '== %s\n' "$*"; }
fail() { printf 'mmfocal: %s\n' "$*" >&2; exit 1; }

case $stack in
  official) mmcv=mmcv==2.1.0 wheel=mmcv-2.1.0 ;;
  onedl) mmcv=onedl-mmcv==2.3.6 wheel=onedl_mmcv-2.3.6 ;;
  *) fail "STACK must be 'official' or 'onedl', got '$stack'." ;;
esac

command -v "$python" >/dev/null || fail "'$python' was not found. Run: make PYTHON=/path/to/python3.11 ..."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.10 | 3.11 | 3.12) ;;
  *) fail "Python 3.10, 3.11 or 3.12 is needed, '$python' is $version. Run: make PYTHON=/path/to/python3.11 ..." ;;
esac

stamp=$env/.mmfocal-installed
state=$(cat requirements/*.txt requirements/install.sh setup.py | cksum; echo "$stack $version")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
  exit 0
fi

"$python" -c 'import venv, ensurepip' 2>/dev/null \
  || fail "Python's venv module is missing. Run: apt-get install python$version-venv (or your system's package)"

cache=${MMFOCAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmfocal}
tag=cp${version/./}
wheels=$cache/wheels/$tag-$(sed -n 's/==/-/p' requirements/torch.txt)

# A wheel that fits, kept from an earlier build or given by the user; else a compiler is needed.
find_wheel() {
  local folder
  for folder in "$wheels" ${PIP_FIND_LINKS:-}; do
    compgen -G "$folder/$wheel-$tag-*.whl" >/dev/null && { echo "$folder"; return; }
  done
}
if [ -z "$(find_wheel)" ]; then
  command -v "${CXX:-c++}" >/dev/null \
    || fail "mmcv's operators are compiled here, and there is no C++ compiler. Run: apt-get install g++ (or your system's package)"
  "$python" -c 'import os, sysconfig as s; exit(not os.path.exists(s.get_path("include") + "/Python.h"))' \
    || fail "mmcv's operators are compiled here, and Python.h is missing. Run: apt-get install python$version-dev (or your system's package)"
fi

if [ ! -x "$env/bin/python" ]; then
  say "Creating $env with Python $version"
  "$python" -m venv "$env"
fi
pip() { "$env/bin/python" -m pip --disable-pip-version-check "$@"; }

say "Installing PyTorch (without GPU, set TORCH_INDEX_URL to PyTorch's index of CPU builds: it is much smaller)"
pip install -q ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r requirements/torch.txt
pip install -q -r requirements/build.txt

if "$env/bin/python" -W ignore -c "
import importlib.metadata as m, mmcv.ops
name, version = '$mmcv'.split('==')
assert m.version(name) == version" 2>/dev/null; then
  say "Keeping the mmcv that is installed"
else
  folder=$(find_wheel)
  if [ -z "$folder" ]; then
    mkdir -p "$wheels"
    log=$cache/build-$stack.log
    say "Compiling mmcv: about 9 minutes on 2 cores, once. Follow it in $log"
    MMCV_WITH_OPS=1 MAX_JOBS=$(nproc 2>/dev/null || echo 2) \
      "$env/bin/python" -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps \
      --no-cache-dir -w "$wheels" "$mmcv" >"$log" 2>&1 \
      || { tail -n 30 "$log" >&2; fail "mmcv could not be compiled; the whole log is $log"; }
    folder=$wheels
  fi
  say "Installing mmcv from $folder"
  pip install -q --no-deps --force-reinstall "$folder"/$wheel-$tag-*.whl
fi

say "Installing the $stack stack, the tools for development and mmfocal itself"
pip install -q -r "requirements/$stack.txt" -r requirements/dev.txt
pip install -q --no-build-isolation --no-deps -e .
"$env/bin/python" -W ignore -c 'import mmcv.ops' \
  || fail "mmcv's operators do not load with this PyTorch. Remove $env and $wheels, then run the same command again."
printf '%s\n' "$state" >"$stamp"
say "The environment is ready: $env"
