#!/usr/bin/env bash
# A Cloud TPU slice: one process on each of its hosts.
#
#   export PROJECT=<project> ZONE=<zone> TPU_NAME=<any name>
#   ACCELERATOR_TYPE=v5litepod-32 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#       experiments/launch/tpu_vm.sh create
#   REPOSITORY=<URL> REVISION=<commit or tag> experiments/launch/tpu_vm.sh install
#   experiments/launch/tpu_vm.sh run experiments.train \
#       --config=<file> --workdir=<folder on a shared file system>
#   experiments/launch/tpu_vm.sh ssh '<command for every host>'
#   experiments/launch/tpu_vm.sh delete
#
# DRY_RUN=1 prints the commands.
source experiments/launch/common.sh

: "${PROJECT:?the Google Cloud project}"
: "${ZONE:?the zone of the TPU, such as europe-west4-b}"
: "${TPU_NAME:?the name of the TPU}"

tpu_vm() {
  run gcloud compute tpus tpu-vm "$1" "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

on_every_host() {
  tpu_vm ssh --worker=all --command="$1"
}

action="${1:-no command}"
shift || true
case "$action" in
create)
  : "${ACCELERATOR_TYPE:?the type and size of the slice, such as v5litepod-32}"
  : "${RUNTIME_VERSION:?the TPU software, such as v2-alpha-tpuv5-lite}"
  tpu_vm create --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION"
  ;;
install)
  : "${REPOSITORY:?the URL to clone}"
  : "${REVISION:?the commit or tag to run}"
  # The hosts' own Python is older than the trainer wants.
  on_every_host "{ test -d optax_heavytail || \
git clone ${REPOSITORY@Q} optax_heavytail; } && \
cd optax_heavytail && git fetch --tags origin && \
git checkout --detach ${REVISION@Q} && \
python3 -m pip install --user uv && \
python3 -m uv venv --allow-existing --python 3.12 .venv && \
python3 -m uv pip install --python .venv 'jax[tpu]' --editable '.[experiments]'"
  ;;
run)
  check_command "$@"
  on_every_host "cd optax_heavytail && .venv/bin/python -m ${*@Q} --distributed"
  ;;
ssh)
  on_every_host "${1:?the command}"
  ;;
delete)
  tpu_vm delete --quiet
  ;;
*)
  fail "$action: must be create, install, run, ssh or delete"
  ;;
esac
