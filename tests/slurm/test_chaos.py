"""Every fault in one run: each block ends right, and none is reported done that is not."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from executors import Serial, Slurm
from executors.contract import is_alive, wait_until
from executors.slurm_files import RunFolder
from executors.toy_job import ToyJob
from executors.worker import save_job

SCRIPT = """
from executors import Slurm
from executors.worker import load_job

job = load_job({path!r})

def tell(event):
    assert event.kind != "done" or event.block in job.done(), "reported done without a record"
    print(event.kind, event.block, flush=True)

Slurm(poll_s=0.5, time=1, {options}).run([job], tell)
print("complete")
"""

N_BLOCKS = 64
OUTLIVES_ITS_TIME, RAISES, KILLS_ITS_WORKER = 1, 58, 62
FAULTS = {
    5: "kill_worker",
    9: "kill_task",
    13: "cancel_task",
    17: "requeue_task",
    21: "preempt_task",
    25: "crash_controller",
    29: "kill_node_of",
}


def test_chaos(cluster, trap, background, tmp_path):
    trap = trap({OUTLIVES_ITS_TIME, *FAULTS}, 0.05)
    held, broken = trap.body(), str(tmp_path / "broken")

    def body(i):
        if i in (RAISES, KILLS_ITS_WORKER) and Path(broken).exists():
            if i == KILLS_ITS_WORKER:
                os._exit(3)
            raise ArithmeticError("this block always raises")
        return held(i)

    Path(broken).touch()
    (cluster.folder / "log" / "jobcomp.log").write_text("")
    job = ToyJob(str(tmp_path / "job"), N_BLOCKS, body=body)
    save_job(job, tmp_path / "saved")

    def drive(options=""):
        script = tmp_path / f"driver{len(list(tmp_path.glob('driver*')))}.py"
        script.write_text(SCRIPT.format(path=str(tmp_path / "saved"), options=options))
        return background(sys.executable, str(script))

    out, err = drive("python='/no/python', stages={'gate': {'python': __import__('sys').executable}}").communicate()
    assert "no task started a block" in err
    assert job.ran() == {}

    drivers = [drive()]
    wait_until(lambda: job.done())
    drivers.append(drive())
    left, killed = dict(FAULTS), {}
    deadline = time.monotonic() + 240
    while left or not (trap.folder / f"sprung{OUTLIVES_ITS_TIME}").exists():
        assert time.monotonic() < deadline, left
        if "JobState=TIMEOUT" in (cluster.folder / "log" / "jobcomp.log").read_text():
            (trap.folder / f"sprung{OUTLIVES_ITS_TIME}").touch()
        block = next((block for block in reversed(left) if trap.look(block)), None)
        if block is None:
            time.sleep(0.1)
            continue
        assert block not in job.done()
        killed[block] = trap.spring(block, getattr(cluster, left.pop(block))).pid
        if len(killed) == 3:
            assert len(job.done()) < N_BLOCKS
            drivers[0].kill()
            drivers[0].communicate()
            drivers[0] = drive()
    for driver in drivers:
        out, err = driver.communicate(timeout=120)
        assert "this block always raises" in err, err
        assert "complete" not in out
        done = {int(line.split()[1]) for line in out.splitlines() if line.startswith("done")}
        assert done <= job.done()
    assert job.done() == set(range(N_BLOCKS)) - {RAISES, KILLS_ITS_WORKER}
    assert job.log("finished") == []
    for block, pid in killed.items():
        assert not is_alive(pid)
        assert pid in job.pids(block)[:-1], f"block {block} did not run again after {FAULTS[block]}"
    assert job.ran()[RAISES] == 3
    assert job.ran()[OUTLIVES_ITS_TIME] >= 2
    assert len(RunFolder.all_in(job.folder)) == 1

    Path(broken).unlink()
    Slurm(poll_s=0.5, throttle=2).run([job])
    plain = ToyJob(str(tmp_path / "serial"), N_BLOCKS, body=lambda i: i * i)
    Serial().run([plain])
    assert job.results() == plain.results()
    wait_until(lambda: cluster.queue() == [])
