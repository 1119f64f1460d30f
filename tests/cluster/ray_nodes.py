"""A cluster of Ray of two nodes on this machine, one of which is killed in the middle of a job. Run by `make cluster`.

    PYTHONPATH=tests python tests/cluster/ray_nodes.py

The job is planned and worked on as a user does; it must end with the bytes of the plain run. Prints what happened.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import smooth_picture
from tiny_models import ddpm

IMAGES, SHARDS = 48, 12
SLOW = ["--steps", "40", "--device", "cpu", "--strength", "0.5"]


def nearfar(*words, **options):
    return subprocess.run([sys.executable, "-m", "nearfar", *map(str, words)], **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


def prepare():
    """A model, pictures, the plain run, and a job."""
    ddpm(Path("model"), prediction_type="sample")
    Path("in").mkdir()
    for number in range(IMAGES):
        smooth_picture(number).save(f"in/{number:03}.png")
    options = ["--model", "model", "--key-file", "key", *SLOW]
    nearfar("anonymize", "in", "plain", *options, check=True)
    nearfar("plan", "anonymize", "in", "out", *options, "--shards", SHARDS, "-o", "job.json", check=True)


def shards_done():
    return len(list(Path("out.shards").glob("*.manifest.jsonl")))


def main():
    os.chdir(tempfile.mkdtemp())
    os.environ |= {"OMP_NUM_THREADS": "1", "NEARFAR_KEY_FILE": str(Path("key").resolve())}
    prepare()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    words = ["work", "job.json", "--engine", "ray", "--address", cluster.address]
    driver = subprocess.Popen([sys.executable, "-m", "nearfar", *words])
    while shards_done() < 3 and driver.poll() is None:
        time.sleep(0.1)
    print(f"{shards_done()} of {SHARDS} shards done with two nodes; the second is killed", flush=True)
    cluster.remove_node(second, allow_graceful=False)
    code = driver.wait(600)
    print(f"nearfar work ended with {code}, {shards_done()} of {SHARDS} shards done")
    same = contents(Path("out")) == contents(Path("plain"))
    print("the same bytes as the plain run" if same else "OTHER BYTES than the plain run")
    cluster.shutdown()
    sys.exit(0 if same and code == 0 else 1)


if __name__ == "__main__":
    main()
