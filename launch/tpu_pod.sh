#!/usr/bin/env bash
# Runs simjax on a Cloud TPU slice: creates or reuses it, installs, runs on all workers, follows the
# log, and after a preemption recreates it and resumes, until WORKDIR/report.json exists.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh --name=NAME --zone=ZONE --type=TYPE --runtime=VERSION [flags] \
    --config=FILE --workdir=gs://BUCKET/RUN [--config.FIELD=VALUE ...]

Arguments from --config on are passed to `python -m simjax.main` on every worker. Defaults can be
set by the environment variables in brackets.
  --name=     of the slice and its queued resource [TPU_NAME]
  --zone=     e.g. us-west4-a [TPU_ZONE]
  --type=     accelerator type, e.g. v5litepod-16 [TPU_TYPE]
  --runtime=  v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e),
              tpu-ubuntu2204-base (v4) [TPU_RUNTIME]
  --project=  default: gcloud's [TPU_PROJECT]
  --spot      preemptible and cheaper
  --create=F  extra flag for `queued-resources create`, e.g. --create=--reserved; repeatable
  --attempts= starts before giving up, default 20
  --poll=     seconds between checks of the slice's state, default 30
  --logs=     directory of the workers' logs, default runs/launch
  --delete    delete the slice at the end, also after an error
  --dry-run   print the commands of a first run, run nothing
SIMJAX_CACHE and JAX_COMPILATION_CACHE_DIR are passed to the workers if set.
Ctrl-C stops following the log, not the run; the same command follows it again.
TEXT
}

fail() {
  echo "launch/tpu_pod.sh: $1" >&2
  exit 1
}

say() {
  echo "launch/tpu_pod.sh: $1" >&2
}

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=${TPU_NAME:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-} runtime=${TPU_RUNTIME:-}
project=${TPU_PROJECT:-} logs=$root/runs/launch delete='' dry_run=''
attempts=20 # our choice: a few preemptions a day for a run of days
poll=30     # seconds, our choice
create=(--quiet)
while (($#)); do
  case $1 in
    --help) usage && exit ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) create+=(--spot) ;;
    --create=*) create+=("${1#*=}") ;;
    --attempts=*) attempts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --delete) delete=1 ;;
    --dry-run) dry_run=1 ;;
    --config=*) break ;;
    *) fail "unknown argument $1; flags of this script precede --config=FILE, see --help." ;;
  esac
  shift
done
for flag in name zone type runtime; do
  [[ -n ${!flag} ]] || fail "--$flag= is missing, see --help."
done
workdir=''
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
[[ $workdir == gs://* ]] ||
  fail "--workdir=${workdir:-?} must be in a bucket (gs://...), which outlives the slice."

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

finished() {
  run gcloud storage ls "$workdir/report.json"
}

create_slice() {
  run "${queued[@]}" create "$name" "--node-id=$name" "${where[@]}" "--accelerator-type=$type" \
    "--runtime-version=$runtime" "${create[@]}"
}

delete_slice() {
  run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet
}

# Prints ABSENT, the queued resource's state, or, if that is ACTIVE, the state of a non-READY node.
slice_state() {
  local state
  if ! state=$("${queued[@]}" describe "$name" "${where[@]}" \
    '--format=value(state.state)' 2>&1); then
    [[ $state == *NOT_FOUND* ]] || fail "$state"
    echo ABSENT
    return
  fi
  state=${state##*$'\n'} # gcloud may print a notice first
  if [[ $state == ACTIVE ]]; then
    state=$("${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)') || state=UNKNOWN
    state=${state/#READY/ACTIVE}
  fi
  echo "$state"
}

# Returns 0 once the slice is usable, 1 if a slice that it created failed.
secure_slice() {
  local state seen='' created=''
  while true; do
    state=$(slice_state) || exit
    [[ $state == "$seen" ]] || say "slice $name is $state"
    seen=$state
    case $state in
      ACTIVE) return 0 ;;
      ABSENT | SUSPENDED | FAILED | PREEMPTED | TERMINATED)
        [[ -z $created ]] || return 1
        [[ $state == ABSENT ]] || delete_slice || exit
        create_slice || exit
        created=1
        ;;
      *) sleep "$poll" ;; # queued, being created or being deleted
    esac
  done
}

# The workers' Python may be too old for simjax: uv installs one.
setup='set -e
flock -n ~/simjax.lock true || exit 0  # a run is in progress: keep its code
rm -rf ~/simjax && mkdir ~/simjax && tar -xzf ~/simjax.tar.gz -C ~/simjax
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
test -d ~/simjax-venv || ~/.local/bin/uv venv --quiet --python 3.12 ~/simjax-venv
~/.local/bin/uv pip install --quiet --python ~/simjax-venv -e ~/simjax"[tpu,gcs]"'

install() {
  local bundle=${TMPDIR:-/tmp}/simjax-$name.tar.gz
  run tar -czf "$bundle" --exclude=__pycache__ -C "$root" \
    pyproject.toml README.md LICENSE simjax configs &&
    run "${vm[@]}" scp "$bundle" "$name:simjax.tar.gz" --worker=all "${where[@]}" --quiet &&
    run "${vm[@]}" ssh "$name" --worker=all "${where[@]}" --quiet "--command=$setup"
}

environment=(env)
for variable in SIMJAX_CACHE JAX_COMPILATION_CACHE_DIR; do
  [[ -z ${!variable:-} ]] || environment+=("$variable=${!variable}")
done
# Starts the program unless it is running (its lock is held), follows its log, returns its status.
# The program survives the connection. A killed one leaves no status: 75, which is retried.
start=$(
  cat <<TEXT
exec 9>~/simjax.lock
if flock -n 9; then
  cd ~/simjax && rm -f ~/simjax.status && : >~/simjax.log
  setsid bash -c '"\$@"; echo \$? >~/simjax.status' _ \\
    $(printf '%q ' "${environment[@]}") ~/simjax-venv/bin/python -m simjax.main \\
    $(printf '%q ' "$@") >>~/simjax.log 2>&1 </dev/null &
fi
exec 9>&-
flock ~/simjax.lock true &
tail -n +1 -F -s 0.2 --pid=\$! ~/simjax.log
exit "\$(cat ~/simjax.status || echo 75)"
TEXT
)

follow() {
  local number=1 status=0
  while [[ -e $logs/$name/$number ]]; do number=$((number + 1)); done
  local log=$logs/$name/$number
  run mkdir -p "$log"
  if [[ -z $dry_run ]]; then
    : >"$log/0.log"
    tail -n +1 -F "$log/0.log" 2>/dev/null &
    follower=$!
  fi
  run "${vm[@]}" ssh "$name" --worker=all "${where[@]}" --quiet "--output-directory=$log" \
    "--command=$start" || status=$?
  if [[ -z $dry_run ]]; then
    sleep 0.2 && kill "$follower" # after it has read the last lines
    say "logs of all workers: $log"
    ((status == 0)) || tail -n 5 "$log"/*.log >&2
  fi
  return "$status"
}

leave() {
  [[ -z $delete ]] || delete_slice
  exit "$1"
}

if [[ -n $dry_run ]]; then
  create_slice && install && follow && finished
  leave 0
fi

follower=''
trap '[[ -z $follower ]] || kill "$follower" 2>/dev/null || true' EXIT
bucket=${workdir#gs://}
gcloud storage ls "gs://${bucket%%/*}" >/dev/null ||
  fail "gs://${bucket%%/*} cannot be read with this gcloud; check the login and --workdir=$workdir."
attempt=0
until finished &>/dev/null; do
  attempt=$((attempt + 1))
  if ((attempt > attempts)); then
    say "not finished after $attempts attempts"
    leave 1
  fi
  say "attempt $attempt of $attempts"
  if ! secure_slice; then
    sleep "$poll"
    continue
  fi
  status=1
  install && { follow && status=0 || status=$?; }
  finished &>/dev/null && break
  sleep "$poll" # a preemption takes a moment to show in the state
  if ((status == 1)) && [[ $(slice_state) == ACTIVE ]]; then
    say "the program, or its installation, failed on a healthy slice: see the message above"
    leave 1
  fi
done
say "finished: $workdir/report.json"
leave 0
