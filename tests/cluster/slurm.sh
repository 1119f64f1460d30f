#!/usr/bin/env bash
# SLURM from Debian's packages on this machine: a job by `nearfar slurm`, one of whose tasks is requeued on the way.
#     apt-get install slurmctld slurmd slurm-client munge && tests/cluster/slurm.sh
# Needs root. Prints the array's states and whether the bytes are those of the plain run. Everything is in a folder of
# /tmp that is removed at the end; daemons are ended.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d /tmp/nearfar-slurm.XXXXXX)
cd "$work"
trap 'kill $(cat slurmctld.pid slurmd.pid 2>/dev/null) 2>/dev/null || true; kill ${munge:-} 2>/dev/null || true; rm -rf "$work"' EXIT

host=$(hostname -s)
cat > slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
JobRequeue=1
ReturnToService=2
NodeName=$host CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir state spool
export SLURM_CONF=$work/slurm.conf
install -d -o munge -g munge /run/munge
[ -e /etc/munge/munge.key ] || /usr/sbin/mungekey
su -s /bin/sh munge -c "exec /usr/sbin/munged -F" & munge=$!
sleep 2
/usr/sbin/slurmctld
/usr/sbin/slurmd
for _ in $(seq 60); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

export OMP_NUM_THREADS=1 NEARFAR_KEY_FILE=$work/key PYTHONPATH=$root/src:$root/tests
"$python" - <<'PY'
from pathlib import Path
from conftest import smooth_picture
from tiny_models import ddpm
ddpm(Path("model"), prediction_type="sample")
Path("in").mkdir()
for number in range(24):
    smooth_picture(number).save(f"in/{number:03}.png")
PY
options="--model model --device cpu --steps 20 --strength 0.5 --key-file key"
"$python" -m nearfar anonymize in plain $options
"$python" -m nearfar plan anonymize in out $options --shards 6 -o job.json
"$python" -m nearfar slurm job.json > array.sh
cat array.sh
job=$(sbatch --parsable array.sh)
for _ in $(seq 600); do
    if [ -z "${requeued:-}" ] && squeue -h -t RUNNING -o %i -r | grep -q .; then
        requeued=$(squeue -h -t RUNNING -o %i -r | head -1)
        sleep 3
        scontrol requeue "$requeued" && echo "requeued $requeued"
    fi
    [ -z "$(squeue -h -j "$job")" ] && break
    sleep 1
done
"$python" -m nearfar status job.json
"$python" -m nearfar merge job.json
diff -r plain out && echo "the same bytes as the plain run"
