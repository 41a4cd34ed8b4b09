"""python slurm_dask.py slides/ -o results --genes GNAS,DDX5"""

from __future__ import annotations

import subprocess
import sys

from dask_jobqueue import SLURMCluster

with SLURMCluster(cores=8, processes=1, memory="16GB", walltime="12:00:00") as cluster:
    cluster.scale(jobs=8)
    call = ["stpredict", "predict", *sys.argv[1:], "--cluster", cluster.scheduler_address]
    sys.exit(subprocess.run(call).returncode)
