"""What happens to clusters, done to a real one in the middle of a run; the slower ones are in `test_chaos`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from executors import Serial, Slurm
from executors.contract import wait_until
from executors.protocol import BlockFailures, Cancelled, WorkersFailed
from executors.slurm_files import RunFolder
from executors.toy_job import ToyJob


@pytest.fixture
def start():
    """Run a job in a thread; returns a future with the events."""
    stop = threading.Event()

    def start(job, **options):
        def body():
            events = []
            Slurm(**{"poll_s": 0.3, "throttle": 4, **options}).run([job], events.append, stop.is_set)
            return events

        return pool.submit(body)

    with ThreadPoolExecutor() as pool:
        yield start
        stop.set()


def run_of(job):
    wait_until(lambda: RunFolder.all_in(job.folder))
    return RunFolder.all_in(job.folder)[-1]


def assert_like_serial(job, tmp_path):
    plain = ToyJob(str(tmp_path / "serial"), job.n_blocks, body=lambda i: i * i)
    Serial().run([plain])
    assert job.results() == plain.results()
    assert job.done() == set(range(job.n_blocks))


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        ("kill_task", ["started", "lost", "started", "done"]),
        ("cancel_task", ["started", "started", "done"]),
        ("signal_task", ["started", "started", "done"]),
    ],
)
def test_the_block_of_a_task_that_ends_runs_again(cluster, trap, start, tmp_path, fault, attempts):
    trap = trap({5})
    job = ToyJob(str(tmp_path / "job"), 12, body=trap.body())
    future = start(job)
    victim = trap.spring(5, getattr(cluster, fault))
    assert 5 not in job.done()
    events = future.result()
    first, second = job.pids(5)
    assert victim.pid == first != second
    assert job.ran() == {**dict.fromkeys(range(12), 1), 5: 2}
    assert [event.kind for event in events if event.block == 5] == attempts
    assert_like_serial(job, tmp_path)


SCRIPT = """
from executors import Slurm
from executors.worker import load_job
Slurm(poll_s=0.3, throttle=4).run([load_job({path!r})], lambda e: print(e.kind, e.block, flush=True))
print("complete")
"""


def test_a_driver_that_was_killed_attaches_when_it_is_started_again(cluster, trap, background, tmp_path):
    from executors.worker import save_job

    trap = trap({5})
    job = ToyJob(str(tmp_path / "job"), 12, body=trap.body())
    save_job(job, tmp_path / "saved")
    (tmp_path / "script.py").write_text(SCRIPT.format(path=str(tmp_path / "saved")))
    first = background(sys.executable, str(tmp_path / "script.py"))
    trap.held(5)
    first.kill()
    first.communicate()
    jobs = {row[0] for row in cluster.queue()}
    second = background(sys.executable, str(tmp_path / "script.py"))
    wait_until(lambda: second.stdout.readline() == "started 5\n")
    assert {row[0] for row in cluster.queue()} == jobs
    trap.spring(5, cluster.cancel_task)
    out, err = second.communicate(timeout=60)
    assert (out.splitlines()[-1], err) == ("complete", "")
    assert job.ran() == {**dict.fromkeys(range(12), 1), 5: 2}
    assert_like_serial(job, tmp_path)


def test_two_drivers_on_one_plan_share_its_jobs(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 16, body=lambda i: time.sleep(0.3) or i * i)
    first = start(job)
    wait_until(lambda: job.done())
    second = start(job)
    done = [sum(event.kind == "done" for event in future.result()) for future in (first, second)]
    assert done == [16, 16]
    assert job.ran() == dict.fromkeys(range(16), 1)
    assert job.log("finished") == ["16"]
    assert_like_serial(job, tmp_path)


@pytest.mark.parametrize("gate", ["slurm", "driver"])
def test_a_gate_that_is_lost_is_replaced_by_the_driver(cluster, trap, start, tmp_path, gate):
    trap = trap({5})
    job = ToyJob(str(tmp_path / "job"), 12, body=trap.body())
    future = start(job, gate=gate)
    trap.held(5)
    gates = [row[5] for row in cluster.queue() if row[3].startswith("gate")]
    assert len(gates) == (gate == "slurm")
    if gates:
        cluster.command("scancel", *gates)
    trap.spring(5, cluster.cancel_task)
    future.result()
    assert job.ran() == {**dict.fromkeys(range(12), 1), 5: 2}
    assert_like_serial(job, tmp_path)


def test_a_wrong_interpreter_stops_the_run(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12)
    with pytest.raises(
        WorkersFailed, match=r"(?s)no task started a block.*task\.sh.*/\d\.log ends with:.*/no/python"
    ) as caught:
        start(job, python="/no/python", stages={"gate": {"python": sys.executable}}).result()
    assert "run the same line again" in str(caught.value)
    assert not job.ran()


def test_a_gate_that_cannot_start_is_noticed(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12)
    start(job, stages={"gate": {"python": "/no/python"}}).result()
    assert job.log("finished") == ["12"]


def test_a_round_whose_log_folder_is_missing_is_made_again(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12, body=lambda i: i * i)
    cluster.command("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        future = start(job)
        run = run_of(job)
        wait_until(lambda: cluster.tasks("PENDING"))
        run.round("0-1").logs.rmdir()
    finally:
        cluster.command("scontrol", "update", "PartitionName=main", "State=UP")
    wait_until(run.round("0-2").path.exists)
    assert run.round("0-1").event_logs() == []
    assert "JobState=FAILED Reason=JobLaunchFailure" in cluster.command("scontrol", "show", "job")
    future.result()
    assert_like_serial(job, tmp_path)


def test_a_folder_that_nodes_do_not_see_stops_the_run(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12)
    cluster.command("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        future = start(job)
        run = run_of(job)
        wait_until(lambda: cluster.tasks("PENDING"))
        run.sentinel.unlink()
    finally:
        cluster.command("scontrol", "update", "PartitionName=main", "State=UP")
    with pytest.raises(WorkersFailed, match=r"n\d does not see .*; it must lie on storage that all nodes share"):
        future.result()
    assert not job.ran()


def test_tasks_that_can_never_start_are_reported(cluster, start, tmp_path):
    with pytest.raises(WorkersFailed, match=r"task\.sh can never start; SLURM says PartitionConfig: the partition has no node"):
        start(ToyJob(str(tmp_path / "job"), 12), cpus=64).result()
    assert cluster.queue() == []


def test_what_sbatch_refuses_is_reported(cluster, start, tmp_path):
    with pytest.raises(WorkersFailed, match=r"sbatch refused .*task\.sh: .*[Ii]nvalid partition"):
        start(ToyJob(str(tmp_path / "job"), 12), partition="none").result()


def test_a_block_that_ends_its_task_is_set_aside(cluster, start, tmp_path):
    def body(i):
        if i == 5:
            time.sleep(0.3)
            os.kill(os.getppid(), 9)
            time.sleep(60)
        return i * i

    job = ToyJob(str(tmp_path / "job"), 12, body=body)
    with pytest.raises(BlockFailures, match=r"task \d+ ended without a word.*Its log: .*\.log") as caught:
        start(job).result()
    (failure,) = caught.value.failures
    assert (failure.block, failure.attempts, caught.value.n_done) == (5, 3, 11)
    assert failure.worker.startswith("pid ")
    assert "on n" in failure.worker
    assert job.done() == set(range(12)) - {5}
    assert len(set(job.pids(5))) == 3


def test_a_full_folder_fails_and_the_next_run_goes_on(cluster, start, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own is not installed here: mount is not permitted")
    try:
        job = ToyJob(str(folder / "job"), 12, body=lambda i: i * i)
        ballast = folder / "ballast"

        def fill(i):
            if i == 5 and not ballast.exists():
                with ballast.open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass
            return i * i

        job.body = fill
        with pytest.raises((BlockFailures, WorkersFailed, OSError), match="No space left on device"):
            start(job).result()
        missing = set(range(12)) - job.done()
        assert missing
        ballast.unlink()
        ballast.touch()
        before = job.ran()
        start(job).result()
        assert all(job.ran()[i] > before[i] for i in missing)
        assert_like_serial(job, tmp_path)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_dry_run_prints_what_would_be_submitted(cluster, tmp_path, capsys):
    job = ToyJob(str(tmp_path / "job"), 12)
    executor = Slurm(
        "main", cpus=2, time=10, throttle=3, setup=["module load cuda"], stages={"toy*": {"mem": "1G"}}, dry_run=True
    )
    with pytest.raises(Cancelled, match="nothing was submitted"):
        executor.run([job])
    text = capsys.readouterr().out
    for line in ("#SBATCH --array=0-2%3", "#SBATCH --mem=1G", "#SBATCH --time=10", "module load cuda", "--dependency=afterany"):
        assert line in text
    assert cluster.queue() == []
    assert not (tmp_path / "job").exists()


def test_arrays_respect_what_the_user_allows(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12, body=lambda i: time.sleep(0.2) or i * i)
    future = start(job, max_tasks=2, throttle=6, cpus=1)
    run = run_of(job)
    wait_until((run.round("0-1").path / "task.sh").exists)
    wait_until(lambda: cluster.queue())
    assert "--array=0-1%6" in (run.round("0-1").path / "task.sh").read_text()
    future.result()
    assert_like_serial(job, tmp_path)


def test_batches_follow_the_time_that_blocks_take(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 24, body=lambda i: time.sleep(0.25) or i * i)
    future = start(job, throttle=2, batch_seconds=1.0)
    run = run_of(job)
    wait_until(run.round("0-2").path.exists)
    tasks = [[sum(map(len, run.round(f"0-{k}").batch(task))) for task in (0, 1)] for k in (1, 2)]
    assert tasks[0] == [12, 12]  # nobody knew; ended by the time
    assert max(tasks[1]) <= 4
    future.result()
    assert job.ran() == dict.fromkeys(range(24), 1)


def test_tasks_that_run_and_wait_are_told(cluster, start, tmp_path):
    job = ToyJob(str(tmp_path / "job"), 12, body=lambda i: time.sleep(0.3) or i * i)
    told = [event.message for event in start(job, throttle=1, max_tasks=3).result() if event.kind == "workers"]
    assert "tasks: 1 running" in " ".join(told)
