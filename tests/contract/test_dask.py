from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, Future, LocalCluster
from distributed.comm import CommClosedError

import volara_expr as ve
from executors import Serial, dask_cluster
from executors.contract import ExecutorContract, is_alive, wait_until
from executors.dask_cluster import Dask
from executors.protocol import Cancelled, Hints, WorkersFailed
from executors.toy_job import ToyJob

CLUSTER = """
import subprocess, sys, threading
from distributed import LocalCluster

workers = [None, None]

def keep_alive(i):
    command = "-m distributed.cli.dask_worker --no-nanny --nthreads 1 --memory-limit 2GB --no-dashboard".split()
    while not closing.is_set():
        workers[i] = subprocess.Popen([sys.executable, *command, cluster.scheduler_address])
        workers[i].wait()

closing = threading.Event()
with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
    for i in (0, 1):
        threading.Thread(target=keep_alive, args=(i,)).start()
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    closing.set()
    for worker in workers:
        worker.kill()
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers that are started again when they die, as Kubernetes does; nannies may give up a worker that dies early."""
    script = tmp_path_factory.mktemp("cluster") / "cluster.py"
    script.write_text(CLUSTER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], text=True, start_new_session=True, **pipes) as cluster:
        with Client(cluster.stdout.readline().strip(), set_as_default=False) as client:
            client.wait_for_workers(2)
            yield client
        cluster.stdin.close()


def running():
    return sum(dask_cluster._running.values())


class TestDask(ExecutorContract):
    tells_deaths = False
    n_trivial = 40_000

    @pytest.fixture(autouse=True)
    def _cluster(self, client, monkeypatch):
        monkeypatch.setattr(dask_cluster, "_MAX_DEATHS", 6)
        client.wait_for_workers(2)
        self.client = client
        self.make_source = f"from executors import Dask\nexecutor = Dask({client.scheduler.address!r})"

    def make_executor(self, n=2):
        return Dask(self.client, batch_seconds=0.2)

    def _assert_no_worker_is_left(self, job):
        def none_runs():
            try:
                return not any(self.client.run(running).values())
            except CommClosedError:  # a worker that its nanny is replacing just now
                return False

        wait_until(none_runs, 20)

    def test_workers_die_with_a_driver_that_is_killed(self, tmp_path, folder):
        """They are the user's and live on, but run no further block."""
        job = ToyJob(folder, 200)
        script = self._start_script(tmp_path, job, seconds=0.2)
        wait_until(lambda: len(job.done()) >= 4)
        script.kill()
        script.communicate(timeout=30)
        self._assert_no_worker_is_left(job)
        assert all(is_alive(pid) for pid in job.pids())
        assert len(job.done()) < 100


@dataclass
class Forgetful(ToyJob):
    """A job of which one record goes down with the machine that wrote it."""

    def pending(self):
        forgotten = Path(self.folder, "forgotten")
        if forgotten.exists() or not self.done():
            yield from super().pending()
        else:
            forgotten.touch()
            yield range(7, 8)


def test_a_block_whose_record_was_lost_runs_again(client, tmp_path):
    job = Forgetful(str(tmp_path), 10)
    events = []
    Dask(client).run([job], events.append)
    assert job.ran() == {**dict.fromkeys(range(10), 1), 7: 2}
    assert [event.kind for event in events].count("job_started") == 1


def test_batches_in_the_scheduler_are_few_and_grow_with_measured_times(client, tmp_path):
    in_scheduler = []

    def watch(event):
        tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        in_scheduler.append(tasks)

    job = ToyJob(str(tmp_path), 60, body=lambda i: time.sleep(0.01))
    Dask(client, batch_seconds=0.2).run([job], watch)
    assert max(in_scheduler) <= 4 + 1
    worker_of = job.pids()
    switches = sum(a != b for a, b in itertools.pairwise(worker_of))
    assert len(set(worker_of)) == 2
    assert switches < 59


def test_a_run_whose_tasks_are_cancelled_from_outside_completes(client, tmp_path):
    cancelled = []

    def watch(event):
        if event.kind == "done" and not cancelled:
            keys = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
            client.cancel([Future(key, client) for key in keys], force=True)
            cancelled.extend(keys)

    job = ToyJob(str(tmp_path), 30, body=lambda i: time.sleep(0.02))
    Dask(client, batch_seconds=0.1).run([job], watch)
    assert cancelled
    assert job.done() == set(range(30))


def test_the_cluster_need_not_be_there_yet(client, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dask_cluster, "_IDLE_S", 0.3)
    job = ToyJob(str(tmp_path), 3)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        Dask(client, resources={"GPU": 1}).run([job], should_stop=lambda: time.monotonic() - began > 1)
    assert "waits for a Dask worker that offers {'GPU': 1}; the cluster has 2" in caplog.text
    assert not job.ran()


def test_resources_choose_the_device(client):
    assert Dask(client, resources={"GPU": 1}).device == "cuda:0"
    assert Dask(client).device == "cpu"


def test_what_the_cluster_has_is_what_is_planned_for(client):
    client.wait_for_workers(2)
    assert Dask(client).hints == Hints(2, None, int(0.7 * 2e9))
    assert Dask(client, (4, 4), "1GB", workers=50).hints == Hints(50, (4, 4), 10**9)


def test_no_client_is_an_error():
    with pytest.raises(ValueError, match="give Dask"):
        Dask()


def test_a_folder_that_workers_do_not_see(client, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    (tmp_path / "here").touch()
    with pytest.raises(WorkersFailed, match="all workers and the driver share"):
        Dask(client).run([ToyJob(str(tmp_path), 3)])


def test_workers_are_spawned():
    assert dask.config.get("distributed.worker.multiprocessing-method") == "spawn"


def test_threads_of_a_worker_have_jobs_of_their_own(tmp_path):
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        job = ToyJob(str(tmp_path), 20, opener=lambda device: time.sleep(0.1), body=lambda i: time.sleep(0.01))
        Dask(client, batch_seconds=0.05).run([job])
    assert job.ran() == dict.fromkeys(range(20), 1)
    assert len(job.log("closed")) == 2


def test_a_segmentation_has_the_same_bytes_as_with_serial(client, tmp_path):
    """Five stages: cells, tables of blocks, tables made at once, and arrays; each worker opens what the others wrote."""
    image = np.random.default_rng(0).random((3, 24, 40, 40), np.float32)
    affs = ve.from_numpy(image, neighborhood=[(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    fragments = affs.watershed(bias=-0.5, block_size=(16, 16, 16))
    graph = fragments.agglomerate(affs, scores={"direct": slice(0, 3)})
    segments = fragments.relabel(graph.mutex_watershed({"direct": (1.0, -0.5)}))
    found = []
    for executor in (Serial(block=(16, 16, 16)), Dask(client, block=(16, 32, 16))):
        folder = tmp_path / type(executor).__name__
        made = ve.write(
            {folder / "out.zarr/seg": segments, folder / "out.zarr/graph": graph}, executor=executor, progress=False
        )
        tables = made[str(folder / "out.zarr/graph")]
        found.append((made[str(folder / "out.zarr/seg")].compute(), tables.nodes(), tables.edges()))
    (a, *one), (b, *other) = found
    assert len(np.unique(a)) > 10
    assert (a == b).all()
    assert all(x.equals(y) for x, y in zip(one, other, strict=True))
