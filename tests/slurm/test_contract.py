from __future__ import annotations

import signal

import pytest

from executors import Slurm
from executors.contract import ExecutorContract, wait_until
from executors.toy_job import ToyJob


@pytest.mark.usefixtures("cluster")
class TestSlurm(ExecutorContract):
    make_source = "from executors import Slurm\nexecutor = Slurm(cpus=2, throttle=1, poll_s=0.3)"

    def make_executor(self, n=2):
        return Slurm(cpus=min(n, 2), throttle=-(-n // 2), poll_s=0.3)

    def test_workers_die_with_a_driver_that_is_killed(self, tmp_path, folder):
        """Other than processes of this machine they go on, and so does the plan, up to its end."""
        job = ToyJob(folder, 12)
        script = self._start_script(tmp_path, job, seconds=0.5)
        wait_until(lambda: len(job.done()) >= 2)
        script.send_signal(signal.SIGKILL)
        script.communicate(timeout=30)
        assert len(job.done()) < 10
        wait_until(lambda: job.log("finished") == ["12"])
        assert job.ran() == dict.fromkeys(range(12), 1)
