#!/usr/bin/env bash
# Runs simjax on this machine's GPUs, one process for all of them, on one or several machines.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/gpu.sh [--dry-run] [--coordinator=HOST:PORT --count=N --index=I] --config=FILE [...]

One machine needs no flags. Several: start it on each, with
  --coordinator=  the machine of index 0 and a free port on it; the same on all machines
  --count=        number of machines
  --index=        of this machine, 0 ... N-1
  --dry-run       print the command, run nothing
All machines must see the workdir. Arguments from --config on are passed to
`python -m simjax.main`. CUDA_VISIBLE_DEVICES selects GPUs.
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
    *) fail "unknown argument $1; flags of this script precede --config=FILE, see --help." ;;
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
  fail "nvidia-smi lists no GPU here; check the driver, or the container's access to the GPUs."
echo "$gpus"
exec "${command[@]}" # exec: SIGTERM reaches the program, which saves and exits with 0
