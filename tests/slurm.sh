#!/usr/bin/env bash
# A sweep on a real Slurm, all of it on this machine: controller, node daemon and munge, from Debian's
# packages. Run as root: tests/slurm.sh PATH/TO/moeplan. Ends with 77 where Slurm cannot be installed.
set -euo pipefail
moeplan=$(realpath "${1:?path of the moeplan binary}")
work=$(mktemp -d /tmp/moeplan-slurm.XXXXXX)
slurm=$work/slurm
started=()

stop() {
  for pid in "${started[@]}"; do
    if [ -f "$pid" ]; then kill "$(cat "$pid")" 2>/dev/null || true; fi
  done
  if [ -n "${keep:-}" ]; then echo "logs are kept in $work"; else rm -rf "$work"; fi
}
trap stop EXIT

if ! command -v slurmctld >/dev/null; then
  echo "installing Slurm"
  if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q slurm-wlm munge; } \
      >"$work/apt.log" 2>&1; then
    tail -3 "$work/apt.log"
    echo "SKIPPED: Slurm cannot be installed here" >&2
    exit 77
  fi
fi

# Munge with a key of its own, on a socket of its own: nothing of the machine's is touched.
host=$(hostname -s)
mkdir -p "$slurm"/{state,spool,log,munge}
chmod 755 "$work" "$slurm"
chmod 700 "$slurm/munge"
dd if=/dev/urandom of="$slurm/munge/key" bs=1024 count=1 status=none
chmod 400 "$slurm/munge/key"
mkdir -p "$slurm/run"; chmod 755 "$slurm/run"
munged --force --key-file="$slurm/munge/key" --socket="$slurm/run/socket" --pid-file="$slurm/munged.pid" \
  --log-file="$slurm/munge/log" --seed-file="$slurm/munge/seed"
started+=("$slurm/munged.pid")
cat > "$slurm/slurm.conf" <<C
ClusterName=moeplan
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm/run/socket
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldLogFile=$slurm/log/slurmctld
SlurmdLogFile=$slurm/log/slurmd
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
export SLURM_CONF=$slurm/slurm.conf
slurmctld -f "$SLURM_CONF"
started+=("$slurm/slurmctld.pid")
for _ in $(seq 20); do scontrol ping 2>/dev/null | grep -q UP && break; sleep 0.5; done
slurmd -f "$SLURM_CONF"
started+=("$slurm/slurmd.pid")
for _ in $(seq 40); do sinfo -h -o %t | grep -q idle && break; sleep 0.5; done
sinfo

cd "$work"
cat > sweep.toml <<'T'
[base]
layer = { tokens-per-step = 512, model-dim = 256, hidden-dim = 256 }
[axes]
cluster.gpus = [8, 16, 32]
"strategy.base" = ["fairseq", "tutel"]
layer.top-k = [1, 2]
T
"$moeplan" --quiet sweep sweep.toml --output whole.csv
"$moeplan" sweep sweep.toml --launch slurm --shards 4 --sbatch-option=--output="$work/job-%A-%a.log" \
  --output merged.csv
for _ in $(seq 120); do [ -f merged.csv ] && break; sleep 0.5; done
if ! cmp whole.csv merged.csv; then
  keep=yes
  squeue || true
  tail -n 5 "$work"/job-*.log "$slurm"/log/* || true
  exit 1
fi
echo "a job array of 4 shards and its merge gave the bytes of an undivided run ($(wc -l < whole.csv) lines)"

# A shard that fails must hold the merge back, and not leave it in the queue for ever.
rm -f merged.csv merged.csv.shard-*
echo 'unreadable' > merged.csv.shard-2.partial
"$moeplan" --quiet sweep sweep.toml --launch slurm --shards 4 --sbatch-option=--output="$work/job-%A-%a.log" \
  --output merged.csv
for _ in $(seq 240); do
  queue=$(squeue -h -o '%j %T %r')
  if [ -z "$queue" ]; then break; fi
  sleep 0.5
done
if [ -f merged.csv ]; then
  echo "merged although a shard failed" >&2
  exit 1
fi
if [ -n "$queue" ]; then
  echo "still in the queue: $queue" >&2
  exit 1
fi
echo "a failed shard cancelled the merge"
