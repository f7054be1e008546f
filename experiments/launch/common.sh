# What the launchers share. They run from the root of the checkout.

set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

# Whether commands are to be printed and not run: DRY_RUN is neither empty nor 0.
dry_run() {
  [[ -n "${DRY_RUN:-}" && "$DRY_RUN" != 0 ]]
}

# Runs a command, or prints it as a shell would read it.
run() {
  if dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Refuses anything but a module of the trainer and its flags.
check_command() {
  [[ "${1:-}" == experiments.* ]] ||
    fail "${1:-no command}: must be a module and its flags, such as" \
      "experiments.train --config=<file> --workdir=<folder>"
}
