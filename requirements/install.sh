#!/usr/bin/env bash
# Makes the environment of one stack, or completes it: install.sh official|onedl FOLDER [clients]
# With `clients` other people's tools come on top of it, see clients.txt.
#
# PYTHON            interpreter to build on; else the environment's own, else one that fits
# TORCH_INDEX_URL   where pip looks for torch, such as PyTorch's own index of CPU builds
# PIP_FIND_LINKS    folders with wheels, separated by spaces: mmcv is not compiled if one fits
# WHEELS            the same, for mmcv only
# MMFOCAL_CACHE     keeps the mmcv wheels that were compiled here (~/.cache/mmfocal)
set -euo pipefail

stack=$1 env=$2 clients=${3:-}
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
fail() {
  printf 'mmfocal: %s\n' "$*" >&2
  exit 1
}

[ -f "requirements/$stack.txt" ] && grep -q 'mmcv==' "requirements/$stack.txt" \
  || fail "STACK must be official or onedl, not '$stack'."
mmcv=$(sed -n 's/^\([a-z-]*mmcv==[0-9.]*\).*/\1/p' "requirements/$stack.txt")

# The interpreter.
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
case $stack in
  official) versions='3.11, 3.12 or 3.13' ;;
  onedl) versions='3.11, 3.12, 3.13 or 3.14' ;;
esac
supported() { [ -n "$1" ] && [[ $versions =~ (^| )"$1"(,| |$) ]]; }

env_version=$(python_version "$env/bin/python")
python=${PYTHON:-}
if [ -z "$python" ]; then
  for python in "$env/bin/python" python3 python3.13 python3.12 python3.11 python3.14 python3; do
    supported "$(python_version "$python")" && break
  done
fi
version=$(python_version "$python")
supported "$version" || fail "STACK=$stack needs Python $versions, and '$python' is" \
  "${version:-not there}. Run: make STACK=$stack PYTHON=/path/to/python3.11 ..."

stamp=$env/.mmfocal-installed
state="$stack $version $clients $(cat requirements/* setup.py | cksum)"
[ "$version" = "$env_version" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && exit

# What has to be there is looked for before anything is downloaded.
package_hint() { printf "Run: sudo apt-get install %s (or your system's counterpart)" "$1"; }

"$python" -c 'import ensurepip, venv' 2>/dev/null \
  || fail "Python's venv module is missing. $(package_hint "python$version-venv")"

cache=${MMFOCAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmfocal}
tag=cp${version/./}
mmcv_wheels() { # Wheels of this mmcv for this Python and machine in the given folders, one a line.
  local folder name=${mmcv//-/_}
  for folder in "$@"; do
    compgen -G "${folder#file://}/${name/==/-}-$tag-*$(uname -m).whl" || true
  done
}
has_gpu() { [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && nvidia-smi -L >/dev/null 2>&1; }
require_compiler() {
  command -v "${CXX:-c++}" >/dev/null \
    || fail "mmcv has to be compiled, and there is no C++ compiler. $(package_hint g++)"
  "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' \
    2>/dev/null \
    || fail "mmcv has to be compiled, and Python.h is missing. $(package_hint "python$version-dev")"
  if has_gpu && ! command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" nvcc >/dev/null; then
    fail "mmcv has to be compiled for the GPU, and CUDA's compiler nvcc is missing. Run: install" \
      "the CUDA toolkit and set CUDA_HOME, or do without the GPU: CUDA_VISIBLE_DEVICES= make ..."
  fi
}
# shellcheck disable=SC2086  # lists of folders
[ -n "$(mmcv_wheels "$cache"/wheels/* ${WHEELS:-} ${PIP_FIND_LINKS:-})" ] || require_compiler

# The environment.
if [ -e "$env/pyvenv.cfg" ] && [ "$version" != "$env_version" ]; then
  say "Removing $env, which has Python ${env_version:-that is gone}"
  rm -rf "$env"
fi
mkdir -p "$env"
log=$(cd "$env" && pwd)/install.log
rm -f "$stamp" "$log"

step() { # TEXT COMMAND...: says TEXT, runs COMMAND, shows the end of its output if it fails.
  say "$1"
  shift
  "$@" >>"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "This step failed, see above. The whole log is $log"
  }
}
pip() { "$env/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

[ -x "$env/bin/python" ] || step "Creating $env with Python $version" "$python" -m venv "$env"

note=''
has_gpu || [ -n "${TORCH_INDEX_URL:-}" ] \
  || note=' (there is no GPU: see TORCH_INDEX_URL in `make help` for a much smaller build)'
step "Installing PyTorch$note" \
  pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r requirements/torch.txt
step "Installing what builds need" pip install -r requirements/build.txt

# mmcv: a wheel that is there, else one that is compiled, once for each Python and PyTorch.
torch_build=$("$env/bin/python" -W ignore -c '
import torch
print(torch.__version__ + ("-gpu" if torch.cuda.is_available() else ""))')
own_wheels=$cache/wheels/$tag-$torch_build
# shellcheck disable=SC2086
wheels=$(mmcv_wheels "$own_wheels" ${WHEELS:-} ${PIP_FIND_LINKS:-})
compiled=''

install_next_mmcv() { # The next wheel of the list; when it is used up, one that is compiled.
  local wheel
  if [ -z "$wheels" ]; then
    [ -z "$compiled" ] || fail "$(mmcv_problem)"
    require_compiler
    mkdir -p "$own_wheels"
    step "Compiling mmcv: about 10 minutes on 2 cores, once. To watch: tail -f $log" \
      requirements/mmcv_wheel.sh "$env/bin/python" "$mmcv" "$own_wheels"
    compiled=yes
    wheels=$(mmcv_wheels "$own_wheels")
  fi
  wheel=${wheels%%$'\n'*}
  wheels=$(tail -n +2 <<<"$wheels")
  step "Installing mmcv from $wheel" pip install --no-deps --force-reinstall "$wheel"
}
mmcv_version() {
  "$env/bin/python" -c "from importlib.metadata import version; print(version('${mmcv%==*}'))"
}
mmcv_problem() { # Why the installed mmcv does not work with this PyTorch; nothing if it does.
  "$env/bin/python" -W ignore -c '
import runpy
print(runpy.run_path("mmfocal/utils/compat.py")["mmcv_ops_problem"]() or "")' \
    || echo "mmcv's compiled operators crash Python."
}

[ "$(mmcv_version 2>/dev/null)" = "${mmcv#*==}" ] || install_next_mmcv
step "Installing the $stack stack and the tools of development" \
  pip install --no-build-isolation -r "requirements/$stack.txt" -r requirements/dev.txt \
  -r requirements/docs.txt
[ -z "$clients" ] || step "Installing other people's tools" \
  pip install --no-deps -r requirements/clients.txt
step "Linking mmfocal into $env" pip install --no-build-isolation --no-deps -e .
while [ -n "$(mmcv_problem)" ]; do
  say "The mmcv in $env does not work with this PyTorch"
  install_next_mmcv
done

printf '%s\n' "$state" >"$stamp"
say "Ready: $env"
