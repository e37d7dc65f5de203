#!/usr/bin/env bash
# Runs simjax on this machine's GPUs (one process drives them all), alone or as one of several.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/gpu.sh [--dry-run] [--coordinator=HOST:PORT --count=N --index=I] --config=FILE [...]

One machine: nothing to say. Several: start it on each, with the same coordinator (the machine of
index 0 and a free port), their count and this one's index (0 ... N-1); all must see the workdir.
From --config on, every argument goes to `python -m simjax.main`. CUDA_VISIBLE_DEVICES chooses GPUs.
  --dry-run   print the command, run nothing
TEXT
}

fail() {
  echo "launch/gpu.sh: $1" >&2
  exit 1
}

dry_run='' coordinator='' count='' index=''
while (($#)); do
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=1 ;;
    --coordinator=*) coordinator=${1#*=} ;;
    --count=*) count=${1#*=} ;;
    --index=*) index=${1#*=} ;;
    --config=*) break ;;
    *) fail "unknown argument $1; own flags come before --config=FILE, see --help." ;;
  esac
  shift
done
(($#)) || fail "--config=FILE is missing, e.g. --config=configs/cifar10.py."

command=(python -m simjax.main "$@")
if [[ -n $coordinator$count$index ]]; then
  [[ -n $coordinator && -n $count && -n $index ]] ||
    fail "several machines need all of --coordinator=HOST:PORT, --count=N and --index=I."
  command=(env "JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=$count"
    "JAX_PROCESS_ID=$index" "${command[@]}")
fi

if [[ -n $dry_run ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
gpus=$(nvidia-smi --list-gpus) && [[ $gpus == *GPU* ]] ||
  fail "nvidia-smi lists no GPU here; check the driver, or that the container was given its GPUs."
echo "$gpus"
exec "${command[@]}" # SIGTERM reaches the program itself, which saves and exits with 0
