#!/usr/bin/env bash
# Train on a Cloud TPU (v2 to v6e), on every worker of the slice, through queued resources.
#   launch/tpu_vm.sh create  --name=N --zone=Z [--accelerator=v5litepod-8] [--runtime=R] [--spot]
#   launch/tpu_vm.sh status  --name=N --zone=Z     go on once it says ACTIVE
#   launch/tpu_vm.sh install --name=N --zone=Z     sends the last commit to every worker
#   launch/tpu_vm.sh run     --name=N --zone=Z --config=configs/worms.py --workdir=gs://BUCKET/DIR
#                            [--config.key=value ...]     detached; after a stop, resumes
#   launch/tpu_vm.sh logs    --name=N --zone=Z     to ./logs/N/worker0.log, worker1.log ...
#   launch/tpu_vm.sh stop    --name=N --zone=Z     SIGTERM to the trainer on every worker
#   launch/tpu_vm.sh delete  --name=N --zone=Z
# Each takes --project=P, and --dry-run, which prints the commands and runs none of them.
# For several workers gcloud wants its key in your agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail

die() { echo "tpu_vm.sh: $1" >&2; exit 2; }
need() { for key; do [[ -n ${!key} ]] || die "$command: --$key is missing"; done; }
go() { if "$dry"; then printf -v line '%q ' "$@" && echo "${line% }"; else "$@"; fi; }
tpu() { go gcloud compute tpus "$@" "${where[@]}"; }
remote() { printf -v steps '; %s' "$@" && tpu tpu-vm ssh "$name" --worker=all "--command=set -e$steps"; }

command=${1---help} name='' zone='' project='' accelerator=v5litepod-8 runtime='' config='' workdir=''
dry=false spot=false main=(../deformgan-venv/bin/python -m deformgan.main)
for arg in "$command" "${@:2}"; do
  case $arg in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry=true ;;
    --spot) spot=true ;;
    --name=* | --zone=* | --project=* | --accelerator=* | --runtime=* | --config=* | --workdir=*)
      key=${arg%%=*} && printf -v "${key#--}" %s "${arg#*=}" ;;
    --*) [[ $command == run ]] && main+=("$arg") || die "$command: unknown argument $arg" ;;
    "$command") ;;
    *) die "unexpected argument '$arg' (arguments are written --key=value)" ;;
  esac
done
