#!/usr/bin/env bash
# Run any config on this machine, on its CPU or its NVIDIA GPUs. Run it again to resume.
#   launch/local.sh --config=configs/worms.py[:variant] [--workdir=DIR] [--config.key=value ...]
# Flags that are not listed here go to `python -m deformgan.main` as they are; so does all after --.
#   --venv=DIR   virtual environment, made and installed into if absent (default: .venv in the repo)
#   --dry-run    print the commands, run none of them
#   --help       print this
# PYTHON=python3.12 chooses the interpreter that makes the environment (3.11 or newer).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv='' dry=false config=false main=(-m deformgan.main)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry=true ;;
    --venv=*) venv=${1#*=} ;;
    --) shift && main+=("$@") && break ;;
    --config | --config=*) config=true main+=("$1") ;;
    *) main+=("$1") ;;
  esac
  shift
done
"$config" || { echo "local.sh: --config is missing (say --config=configs/worms.py)" >&2; exit 2; }
venv=${venv:-$root/.venv}
go() { if "$dry"; then printf -v line '%q ' "$@" && echo "${line% }"; else "$@"; fi; }

[[ -x $venv/bin/pip ]] || go "${PYTHON:-python3}" -m venv "$venv"

# -I: only the environment counts, not a deformgan/ or an egg-info in the current directory.
if ! "$venv/bin/python" -I -m pip show --quiet deformgan 2>/dev/null; then
  extra='' # the wheels of jax for the newest CUDA that the driver can run
  if command -v nvidia-smi >/dev/null; then
    cuda=$(nvidia-smi | sed -nE 's/.*CUDA [A-Za-z ]*Version: *([0-9]+).*/\1/p') || cuda=''
    case $cuda in
      12) extra='[cuda12]' ;;
      1[3-9]) extra='[cuda13]' ;;
      *) echo "local.sh: nvidia-smi names no CUDA 12 or 13 (got '$cuda'): installing for CPU" >&2 ;;
    esac
  fi
  go "$venv/bin/python" -m pip install -e "$root$extra"
fi
"$dry" || exec "$venv/bin/python" "${main[@]}" # exec: a SIGTERM reaches the trainer, which saves
go "$venv/bin/python" "${main[@]}"
