"""python slurm_dask.py slides/ -o results --genes GNAS,DDX5"""

from __future__ import annotations

import subprocess
import sys

from dask_jobqueue import SLURMCluster

# Python would else let workers import the files of the folder that they are started in.
safely = ["export PYTHONSAFEPATH=1"]
with SLURMCluster(cores=8, processes=1, memory="16GB", walltime="12:00:00", job_script_prologue=safely) as cluster:
    cluster.scale(jobs=8)
    call = ["stpredict", "predict", *sys.argv[1:], "--cluster", cluster.scheduler_address]
    sys.exit(subprocess.run(call).returncode)
