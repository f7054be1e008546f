#!/usr/bin/env bash
# Several processes on this machine, each with CPU devices of its own: a pod to try
# commands out.
#
#   PROCESSES=2 DEVICES=4 experiments/launch/local.sh experiments.train \
#       --config=<file> --workdir=<folder>
#
# DRY_RUN=1 prints the commands. The first process that fails ends the others.
source experiments/launch/common.sh

: "${PROCESSES:?how many processes}"
: "${DEVICES:=1}" # of each process
: "${PORT:=12345}" # a free one
: "${PYTHON:=python}"
check_command "$@"

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((process = 0; process < PROCESSES; process++)); do
  command=(
    env JAX_PLATFORMS=cpu
    XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES"
    "$PYTHON" -m "$@" --distributed --coordinator="127.0.0.1:$PORT"
    --num_processes="$PROCESSES" --process_id="$process"
  )
  # In a function the job would be a shell, and killing it would leave its command.
  if dry_run; then run "${command[@]}"; else "${command[@]}" & fi
done
for ((process = 0; process < PROCESSES; process++)); do
  dry_run || wait -n
done
