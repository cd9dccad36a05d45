#!/usr/bin/env bash
# Train on a Cloud TPU (v2 to v6e), on every worker of the slice, through queued resources.
#   launch/tpu_vm.sh create --name=N --zone=Z [--accelerator=v5litepod-8] [--runtime=R] [--spot]
#   launch/tpu_vm.sh run --name=N --zone=Z --config=configs/worms.py --workdir=gs://BUCKET/DIR ...
#   launch/tpu_vm.sh status|install|logs|stop|delete --name=N --zone=Z
# All take --project=P and --dry-run (prints only). Once status says ACTIVE, install sends the last
# commit. Run detaches; logs go to ./logs/N. Several workers: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
die() { echo "tpu_vm.sh: $1" >&2 && exit 2; }
need() { for key; do [[ -n ${!key} ]] || die "$command: --$key is missing"; done; }
go() { if "$dry"; then printf -v line '%q ' "$@" && echo "${line% }"; else "$@"; fi; }
tpu() { go gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }
workers() { tpu tpu-vm ssh "$name" --worker=all "--command=set -e$(printf '; %s' "$@")"; }

if [[ $# == 0 || " $* " == *' --help '* ]]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit; fi
command=$1 name='' zone='' project='' accelerator=v5litepod-8 runtime='' config='' workdir=''
dry=false extra=() # flags that are not named here: create gives them to gcloud, run to the trainer
for arg in "${@:2}"; do
  if [[ $arg =~ ^--(name|zone|project|accelerator|runtime|config|workdir)=(.*)$ ]]; then
    printf -v "${BASH_REMATCH[1]}" %s "${BASH_REMATCH[2]}"
  elif [[ $arg == --dry-run ]]; then dry=true; else extra+=("$arg"); fi
done
need name zone
[[ $command =~ ^(create|run)$ || -z ${extra[*]-} ]] || die "$command: unknown argument ${extra[0]}"
"$dry" || command -v gcloud >/dev/null || die "gcloud is missing: install the Google Cloud CLI"
case $command in
  create) # which runtime a TPU needs: docs.cloud.google.com/tpu/docs/runtimes
    case $accelerator in v6e-*) image=v2-alpha-tpuv6e ;; v5p-*) image=v2-alpha-tpuv5 ;;
      v5lite*) image=v2-alpha-tpuv5-lite ;; *) image=tpu-ubuntu2204-base ;; esac
    tpu queued-resources create "$name" "--node-id=$name" "--accelerator-type=$accelerator" \
      "--runtime-version=${runtime:-$image}" ${extra[@]+"${extra[@]}"} ;;
  status) tpu queued-resources describe "$name" '--format=yaml(state)' ;;
  install) # these runtimes are Ubuntu 22.04 with Python 3.10, too old: uv brings 3.12, without sudo
    root=$(dirname "$0")/.. tarball=${TMPDIR:-/tmp}/deformgan-$name.tar.gz
    "$dry" || git -C "$root" diff --quiet HEAD || die "install sends the last commit: commit first"
    go git -C "$root" archive "--output=$tarball" HEAD
    tpu tpu-vm scp "$tarball" "$name:deformgan.tar.gz" --worker=all
    workers 'rm -rf deformgan/src' 'mkdir -p deformgan/src' 'cd deformgan' \
      'tar -xzf ../deformgan.tar.gz -C src' 'python3 -m pip install --user uv' \
      'python3 -m uv venv --seed --allow-existing --python=3.12 venv' \
      'venv/bin/pip install -e "./src[tpu,gcs]"' ;;
  run)
    need config workdir
    [[ $workdir == gs://?* ]] || die "run: --workdir must be gs://, no TPU disk is shared or kept"
    printf -v flags ' %q' "--config=$config" "--workdir=$workdir" ${extra[@]+"${extra[@]}"}
    workers 'cd deformgan/src' 'flock -n ../lock true || { echo "already running" >&2; exit 1; }' \
      'exec >>../log 2>&1 </dev/null' \
      "nohup flock -nF ../lock ../venv/bin/python -m deformgan.main$flags & echo \$! >../pid" ;;
  logs) # scp fetches from one worker at a time, and ssh --output-directory fails (SDK 528)
    count=$(tpu tpu-vm describe "$name" '--format=value(networkEndpoints.len())')
    if "$dry"; then echo "$count" && count=1; fi # prints the rest for the first worker
    go mkdir -p "logs/$name"
    for ((i = 0; i < count; i++)); do
      tpu tpu-vm scp "$name:deformgan/log" "logs/$name/worker$i.log" "--worker=$i"
    done ;;
  stop) workers 'flock -n deformgan/lock echo "not running" || xargs kill <deformgan/pid' ;;
  delete) tpu queued-resources delete "$name" --force --quiet ;;
  *) die "no command '$command': see --help" ;;
esac
