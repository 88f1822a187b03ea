from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors import Multiprocessing, Serial, processes
from executors.bookkeeping import available_cpus
from executors.contract import ExecutorContract, is_alive, wait_until
from executors.protocol import BlockFailures, Cancelled, Event, Resources, parse_bytes
from executors.toy_job import ToyJob
from executors.worker import run_blocks, save_job


class TestSerial(ExecutorContract):
    make_source = "from executors import Serial\nexecutor = Serial()"
    separate_processes = False

    def make_executor(self, n=2):
        return Serial()


class TestSerialThreads(TestSerial):
    """Blocks that are computed side by side, in threads of one process."""

    @pytest.fixture(autouse=True)
    def _several_threads(self, monkeypatch):
        named = ToyJob.__post_init__

        def threaded(job):
            named(job)
            job.resources = Resources(threads=3, writes=3)

        monkeypatch.setattr(ToyJob, "__post_init__", threaded)


class TestMultiprocessing(ExecutorContract):
    make_source = "from executors import Multiprocessing\nexecutor = Multiprocessing(2)"

    def make_executor(self, n=2):
        return Multiprocessing(n)

    @pytest.mark.parametrize("delay_s", [0.05, 0.15])
    def test_workers_that_still_start_ignore_ctrl_c(self, tmp_path, folder, delay_s):
        script = self._start_script(tmp_path, ToyJob(folder, 400), seconds=0.02)
        wait_until(Path(folder, "toy.job").exists)
        time.sleep(delay_s)
        os.killpg(script.pid, signal.SIGINT)
        _, err = script.communicate(timeout=30)
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert 'File "<string>"' not in err  # the command line of a worker


class TestKeptWorkers(ExecutorContract):
    """Each test makes several runs with the same workers, where none fails."""

    make_source = "from executors import Multiprocessing\nexecutor = Multiprocessing(2).__enter__()"

    @pytest.fixture(autouse=True)
    def _keep(self):
        with ExitStack() as self.until:
            self.executors = {}
            yield

    def make_executor(self, n=2):
        if n not in self.executors:
            self.executors[n] = self.until.enter_context(Multiprocessing(n))
        return self.executors[n]


class Phases:
    """A job that notes in memory which phase of which block began and ended."""

    key = name = "phases"
    resources = Resources(writes=2)

    def __init__(self):
        self.log: list[tuple[str, int]] = []
        self.may_write = threading.Event()

    def read(self, i):
        self.log.append(("read", i))
        return i

    def compute(self, i):
        self.log.append(("compute", i))
        if i == 1:
            self.may_write.set()
        return i

    def write(self, i):
        if i == 0 and not self.may_write.wait(10):
            raise TimeoutError("block 1 was not computed while block 0 was being written")
        self.log.append(("write", i))


def test_the_next_read_and_the_last_write_overlap_the_compute():
    job, events = Phases(), []
    run_blocks(job, range(4), events.append)
    assert [event.kind for event in events].count("done") == 4
    for i in range(3):
        assert job.log.index(("read", i + 1)) < job.log.index(("compute", i))
    assert job.log.index(("compute", 1)) < job.log.index(("write", 0))
    assert sorted(i for phase, i in job.log if phase == "write") == [0, 1, 2, 3]


def test_blocks_are_computed_side_by_side_and_no_more_than_the_threads():
    together, most, running = threading.Barrier(3), 0, 0
    lock = threading.Lock()

    def body(i):
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)  # passes only where three are here at once
        with lock:
            running -= 1
        return i

    events: list[Event] = []
    job = InMemory(12, int)
    job.body, job.resources = body, Resources(threads=3)
    Serial().run([job], events.append)
    assert most == 3
    assert sorted(e.block for e in events if e.kind == "done") == list(range(12))


@pytest.mark.parametrize("threads", [1, 3])
def test_everything_at_hand_is_complete_when_no_block_is_at_hand(threads):
    job, events = Phases(), []
    job.resources = Resources(threads=threads)
    job.may_write.set()

    def blocks():
        yield from (0, 1, None)
        assert {event.block for event in events if event.kind == "done"} == {0, 1}
        yield from (None, 2)

    run_blocks(job, blocks(), events.append)
    assert {event.block for event in events if event.kind == "done"} == {0, 1, 2}


def test_an_error_of_the_source_leaves_after_the_write_in_progress():
    job, events = Phases(), []
    job.may_write.set()

    def blocks():
        yield from (0, 1)
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run_blocks(job, blocks(), events.append)
    assert [(event.kind, event.block) for event in events] == [("started", 0), ("done", 0)]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_a_block_gets_three_attempts_and_no_more(failing_attempts):
    attempts = [0] * len(failing_attempts)

    def reader(i):
        attempts[i] += 1
        if attempts[i] <= failing_attempts[i]:
            raise OSError(f"attempt {attempts[i]}")

    events: list[Event] = []
    job = InMemory(len(attempts), reader)
    lost = {i for i, n in enumerate(failing_attempts) if n >= 3}
    if lost:
        with pytest.raises(BlockFailures) as caught:
            Serial().run([job], events.append)
        assert {failure.block for failure in caught.value.failures} == lost
        assert caught.value.n_done == len(attempts) - len(lost)
        assert "There is no job file" in caught.value.__notes__[0]
    else:
        Serial().run([job], events.append)
    assert attempts == [min(n + 1, 3) for n in failing_attempts]
    assert job.finished == (not lost)
    assert {event.block for event in events if event.kind == "done"} == set(range(len(attempts))) - lost


class InMemory(ToyJob):
    """A job without any file, which holds a generator so that it cannot be saved either."""

    def __init__(self, n_blocks, reader):
        super().__init__("/nowhere", n_blocks, reader=reader, files=False)
        self.generator = (i for i in ())
        self.finished = False

    def setup(self, device):
        pass

    def close(self):
        pass

    def pending(self):
        yield range(self.n_blocks)

    def finish(self):
        self.finished = True


def test_workers_live_through_all_jobs_and_set_each_up_once(tmp_path):
    def opener(device):
        with (tmp_path / "setups").open("a") as log:
            log.write(f"{os.getpid()} {device}\n")

    jobs = [
        ToyJob(str(tmp_path / key), 20, key=key, opener=opener, body=lambda i: time.sleep(0.02)) for key in ("first", "second")
    ]
    Multiprocessing(2).run(jobs)
    assert len(set(jobs[0].pids())) == 2
    assert set(jobs[0].pids()) == set(jobs[1].pids())
    setups = (tmp_path / "setups").read_text().splitlines()
    assert sorted(setups) == sorted(f"{pid} cpu" for pid in set(jobs[0].pids()) for _ in jobs)


def napping(folder, n=20):
    return ToyJob(str(folder), n, body=lambda i: time.sleep(0.02))


def test_workers_are_kept_until_the_end_of_the_with_block(tmp_path):
    jobs = [napping(tmp_path / name) for name in "abc"]
    with Multiprocessing(2) as executor:
        executor.run(jobs[:1])
        assert sorted(jobs[0].log("closed")) == sorted(str(pid) for pid in set(jobs[0].pids()))
        thread = threading.Thread(target=executor.run, args=(jobs[1:2],))
        thread.start()
        thread.join()
        executor.run(jobs[2:])
        kept = set(jobs[0].pids())
        assert len(kept) == 2
        assert all(map(is_alive, kept))
    assert set(jobs[1].pids()) == set(jobs[2].pids()) == kept
    assert not any(map(is_alive, kept))


def test_kept_workers_that_a_thread_started_outlive_it(tmp_path):
    jobs = [napping(tmp_path / name) for name in "ab"]
    with Multiprocessing(2) as executor:
        thread = threading.Thread(target=executor.run, args=(jobs[:1],))
        thread.start()
        thread.join()
        time.sleep(0.2)
        executor.run(jobs[1:])
    assert set(jobs[0].pids()) == set(jobs[1].pids())


def test_a_kept_worker_that_was_killed_is_replaced(tmp_path):
    jobs = [napping(tmp_path / name) for name in "ab"]
    events = []
    with Multiprocessing(2) as executor:
        executor.run(jobs[:1])
        victim, other = set(jobs[0].pids())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not is_alive(victim))
        executor.run(jobs[1:], events.append)
    assert other in jobs[1].pids()
    assert len(set(jobs[1].pids())) == 2
    assert all(event.attempt == 0 for event in events if event.kind == "lost")  # no block is blamed


def test_a_stopped_run_ends_its_workers_and_the_next_starts_others(tmp_path):
    jobs = [napping(tmp_path / "a", 500), napping(tmp_path / "b")]
    with Multiprocessing(2) as executor:
        with pytest.raises(Cancelled):
            executor.run(jobs[:1], should_stop=lambda: len(jobs[0].done()) >= 5)
        assert not any(map(is_alive, jobs[0].pids()))
        executor.run(jobs[1:])
    assert jobs[1].done() == set(range(20))


def test_two_runs_at_a_time_share_no_worker(tmp_path):
    jobs = [napping(tmp_path / name) for name in "ab"]
    with Multiprocessing(2) as executor:
        threads = [threading.Thread(target=executor.run, args=([job],)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(job.done() == set(range(20)) for job in jobs)
    assert not set(jobs[0].pids()) & set(jobs[1].pids())


def test_an_executor_keeps_workers_once(tmp_path):
    with Multiprocessing(2) as executor, pytest.raises(RuntimeError, match="kept already"):
        executor.__enter__()
    job = napping(tmp_path)
    executor.run([job])
    assert not any(map(is_alive, job.pids()))


def test_the_peak_of_a_run_is_not_that_of_the_one_before(tmp_path):
    peaks = []
    with Multiprocessing(1) as executor:
        for name, size in (("a", 400_000_000), ("b", 1_000)):
            job = ToyJob(str(tmp_path / name), 1, body=lambda i, size=size: len(bytearray(b"x" * size)))
            executor.run([job], lambda event: peaks.append(event.peak_bytes) if event.kind == "done" else None)
    assert peaks[0] > 400_000_000 > peaks[1] > 1_000_000


def test_no_more_workers_than_blocks_start(tmp_path):
    job = ToyJob(str(tmp_path), 2, body=lambda i: time.sleep(0.3))
    Multiprocessing(8).run([job])
    assert len(job.log("closed")) == len(set(job.pids())) == 2


@pytest.mark.parametrize(("n", "threads"), [(1, os.environ.get("OMP_NUM_THREADS", "unset")), (2, "1")])
def test_workers_beside_each_other_use_one_thread_each(tmp_path, n, threads):
    job = ToyJob(str(tmp_path), 1, body=lambda i: os.environ.get("OMP_NUM_THREADS", "unset"))
    Multiprocessing(n).run([job])
    assert job.results() == {0: threads.encode()}


def test_peak_memory_is_the_workers_own(tmp_path):
    ballast = bytearray(b"x" * 300_000_000)
    peaks = []
    job = ToyJob(str(tmp_path), 2, body=lambda i: len(bytearray(b"x" * 50_000_000)))
    Multiprocessing(1).run([job], lambda event: peaks.append(event.peak_bytes) if event.kind == "done" else None)
    assert 50_000_000 < max(peaks) < 250_000_000 < len(ballast)


def test_what_workers_print_arrives_on_stderr(tmp_path, capsys):
    def body(i):
        print(f"block {i} über alles")
        print("mind the step", file=sys.stderr)

    Multiprocessing(1).run([ToyJob(str(tmp_path), 1, body=body)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(captured.err.splitlines()) == ["block 0 über alles", "mind the step"]


def test_a_run_in_a_thread(tmp_path):
    job = ToyJob(str(tmp_path), 10)
    thread = threading.Thread(target=Multiprocessing(2).run, args=([job],))
    thread.start()
    thread.join()
    assert job.log("finished") == ["10"]


def test_a_death_is_noticed_although_a_child_holds_the_pipes(tmp_path):
    def body(i):
        if not (tmp_path / "child").exists():
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            (tmp_path / "child").write_text(str(child.pid))
            os._exit(9)

    job = ToyJob(str(tmp_path), 1, body=body)
    began = time.monotonic()
    Multiprocessing(1).run([job])
    assert time.monotonic() - began < 30
    assert job.ran() == {0: 2}
    child = int((tmp_path / "child").read_text())
    assert is_alive(child)
    os.kill(child, 9)


def test_a_block_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_S", 0.3)
    job = ToyJob(str(tmp_path), 2, body=lambda i: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(Cancelled, match="0 of 2 blocks"):
        Multiprocessing(2).run([job], should_stop=lambda: len(job.pids()) == 2)
    assert time.monotonic() - began < 30
    wait_until(lambda: not any(is_alive(pid) for pid in job.pids()))


@dataclass
class BadRecord(ToyJob):
    def write(self, result: tuple[int, bytes]) -> Any:
        return threading.Lock() if result[0] == 1 else super().write(result)


def test_a_record_that_does_not_pickle_is_a_failure_of_its_block(tmp_path):
    job = BadRecord(str(tmp_path), 3)
    with pytest.raises(BlockFailures, match="return plain values") as caught:
        Multiprocessing(1).run([job])
    assert [failure.block for failure in caught.value.failures] == [1]


def test_a_job_that_cannot_travel_is_refused(tmp_path):
    numbers = (i for i in range(3))
    job = ToyJob(str(tmp_path), 3, body=lambda i: next(numbers))
    with pytest.raises(TypeError, match=r"'toy toy' cannot go to another process.*Serial\(\)"):
        Multiprocessing(1).run([job])


def test_a_saved_job_runs_single_blocks_from_the_shell(tmp_path):
    job = ToyJob(str(tmp_path), 9, body=lambda i: "x" * i)
    save_job(job, tmp_path / "some.job")
    command = [sys.executable, "-W", "error", "-m", "executors.worker", str(tmp_path / "some.job"), "3", "7"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "block 3: 3\nblock 7: 7\n"
    assert job.done() == {3, 7}
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_the_cpus_of_this_process_are_counted(monkeypatch):
    assert 1 <= available_cpus() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert Multiprocessing().hints.workers == 1


@pytest.mark.parametrize("size", ["", "4 pounds", "1.2.3 GB", "I", 0, -1, "0.5"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="give bytes, or text such as"):
        parse_bytes(size)


def test_hints_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="n=0"):
        Multiprocessing(0)
    with pytest.raises(ValueError, match=r"block=\(4, 0\)"):
        Serial(block=(4, 0))


def test_failures_travel():
    failures = BlockFailures([], "toy", 3)
    assert str(BlockFailures(*failures.__reduce__()[1])) == str(failures)
    assert replace(Event("done", "toy", 1), attempt=2).attempt == 2
    assert Path(Serial().__repr__()).name.startswith("Serial")
