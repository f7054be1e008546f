#!/usr/bin/env bash
# A TPU slice of a Google Kubernetes Engine cluster: one pod on each of its hosts.
#
#   export NAME=<name of the run> IMAGE=<image with the checkout> \
#       ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x8 CHIPS_PER_HOST=4 \
#       CLAIM=<claim of a shared volume>
#   experiments/launch/gke_jobset.sh experiments.train \
#       --config=<file> --workdir=/shared/<folder>
#
# DRY_RUN=1 prints what kubectl would be given.
source experiments/launch/common.sh

: "${NAME:?the name of the run}"
: "${IMAGE:?an image with the checkout in /optax_heavytail}"
: "${ACCELERATOR:?the type of TPU, such as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?the shape of the slice, such as 4x8}"
: "${CHIPS_PER_HOST:?4 on most machine types}"
: "${CLAIM:?a PersistentVolumeClaim that all hosts can write to}"
check_command "$@"

[[ "$TOPOLOGY" =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
  fail "TOPOLOGY=$TOPOLOGY: must be numbers with x between them, such as 4x8"
[[ "$CHIPS_PER_HOST" =~ ^[1-9][0-9]*$ ]] ||
  fail "CHIPS_PER_HOST=$CHIPS_PER_HOST: must be a number"
chips=$((${TOPOLOGY//x/*}))
((chips % CHIPS_PER_HOST == 0)) ||
  fail "CHIPS_PER_HOST=$CHIPS_PER_HOST: must divide the $chips chips of $TOPOLOGY"
HOSTS=$((chips / CHIPS_PER_HOST))

ARGS=""
for word in "$@" --distributed; do
  word="${word//\\/\\\\}"
  ARGS+="\"${word//\"/\\\"}\", "
done
ARGS="${ARGS%, }"

manifest="$(<experiments/launch/gke_jobset.yaml)"
for name in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_HOST CLAIM HOSTS ARGS; do
  manifest="${manifest//"\${$name}"/"${!name}"}"
done

if dry_run; then
  echo "# kubectl apply --filename=-"
  echo "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi
