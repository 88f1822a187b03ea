"""The tests that every executor must pass, as a class to inherit from.

In a test module of your own::

    from executors.contract import ExecutorContract

    class TestMyExecutor(ExecutorContract):
        executor = "my_package:MyExecutor"

        def make_executor(self, n=2):
            return MyExecutor(workers=n)

and in ``conftest.py``, for readable failures: ``pytest.register_assert_rewrite("executors.contract")``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from executors.protocol import BlockFailures, Cancelled, Event, Executor, WorkersFailed
from executors.toy_job import ToyJob

__all__ = ["ExecutorContract", "is_alive", "wait_until"]

_SCRIPT = """
import signal, time
{make}
from executors.toy_job import ToyJob

print("the script ran")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background hands "ignore" down
seconds = {seconds}

def add(step):
    return lambda i: time.sleep(seconds) or i + step

executor.run([ToyJob({folder!r}, {n_blocks}, body=add(100))])
print("the run ended")
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return sys.platform != "linux"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition holds.

    Raises
    ------
    TimeoutError
        It does not after so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain for {condition}")
        time.sleep(0.01)


class ExecutorContract:
    """What an executor promises, proved with jobs that leave traces on disk.

    Attributes
    ----------
    make_source : str
        Python lines that bind ``executor`` in a script of its own.
    separate_processes : bool
        Blocks run outside the calling process, so that a worker may be killed. Where False, tests that kill are skipped.
    tells_deaths : bool
        The executor knows a worker's exit code and what it printed last.
    n_trivial : int
        Blocks that run in the test of the bookkeeping's memory.
    """

    make_source: ClassVar[str]
    separate_processes: ClassVar[bool] = True
    tells_deaths: ClassVar[bool] = True
    n_trivial: ClassVar[int] = 10_000

    def make_executor(self, n: int = 2) -> Executor:
        """Return the executor under test with `n` workers, where it has such a number."""
        raise TypeError(f"{type(self).__name__} must override make_executor")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        """Folder of a job, which need not exist yet."""
        return str(tmp_path / "job")

    @pytest.fixture
    def _killing(self) -> None:
        if not self.separate_processes:
            pytest.skip("blocks run in the calling process, which a kill would end")

    # Results and order

    def test_results_equal_those_of_a_plain_loop(self, folder: str) -> None:
        """Closures travel, every block runs once, and what `setup` opened is closed."""
        offset = {"value": 7}
        job = ToyJob(folder, 40, body=lambda i: i * i + offset["value"])
        self.make_executor().run([job])
        assert job.results() == {i: str(i * i + 7).encode() for i in range(40)}
        assert job.ran() == dict.fromkeys(range(40), 1)
        assert job.log("finished") == ["40"]
        assert len(set(job.log("closed"))) == len(job.log("closed")) >= len(set(job.pids()))
        assert (os.getpid() in job.pids()) is self.make_executor().in_process is not self.separate_processes

    def test_more_workers_than_blocks(self, folder: str) -> None:
        """No worker waits for a block that never comes."""
        job = ToyJob(folder, 2)
        self.make_executor(n=5).run([job])
        assert job.done() == {0, 1}

    def test_no_block_pending(self, folder: str) -> None:
        """A job without pending blocks is finished and nothing else."""
        job = ToyJob(folder, 0)
        events: list[Event] = []
        self.make_executor().run([job], events.append)
        assert [event.kind for event in events] == ["job_started", "job_done"]
        assert job.log("finished") == ["0"]
        assert job.log("closed") == []

    def test_resume_runs_only_what_is_missing(self, folder: str) -> None:
        """Blocks on record are not run again."""
        self.make_executor().run([ToyJob(folder, 10)])
        job = ToyJob(folder, 25)
        self.make_executor().run([job])
        assert job.ran() == dict.fromkeys(range(25), 1)

    def test_jobs_run_in_the_order_given(self, tmp_path: Path) -> None:
        """Every block of a job sees all blocks of the job before it, finished."""
        first = ToyJob(str(tmp_path / "first"), 12, key="first")
        last = ToyJob(
            str(tmp_path / "last"),
            6,
            key="last",
            needs=("first", "earlier run"),
            body=lambda i: (len(first.done()), first.log("finished")),
        )
        self.make_executor().run([first, last])
        assert set(last.results().values()) == {str((12, ["12"])).encode()}

    def test_jobs_in_a_wrong_order_are_refused(self, tmp_path: Path) -> None:
        """Before anything runs, naming both jobs."""
        first = ToyJob(str(tmp_path / "first"), 2, key="first")
        last = ToyJob(str(tmp_path / "last"), 2, key="last", needs=("first",))
        with pytest.raises(ValueError, match=r"toy last.*needs 'toy first'"):
            self.make_executor().run([last, first])
        assert not last.ran()

    def test_events_are_complete_and_in_order(self, folder: str) -> None:
        """In the calling thread: the job's start, then start and end of each block, then the job's end."""
        events: list[tuple[Event, int]] = []
        self.make_executor().run([ToyJob(folder, 30)], lambda event: events.append((event, threading.get_ident())))
        assert {thread for _, thread in events} == {threading.get_ident()}
        kinds: dict[int | None, list[str]] = defaultdict(list)
        events = [(event, thread) for event, thread in events if event.kind != "workers"]
        for event, _ in events:
            kinds[event.block].append(event.kind)
        assert kinds.pop(None) == ["job_started", "job_done"]
        assert kinds == {i: ["started", "done"] for i in range(30)}
        assert events[0][0].total == 30
        for event, _ in events[1:-1]:
            assert (event.job, event.attempt) == ("toy", 1)
            assert event.worker
            if event.kind == "done":
                assert event.record == len(str(event.block))
                assert event.seconds > 0
                assert event.peak_bytes > 1_000_000

    def test_an_error_of_the_watcher_stops_the_run(self, folder: str) -> None:
        """An exception of `on_event` passes through and no process is left."""

        def watch(event: Event) -> None:
            if event.kind == "done":
                raise LookupError("no such bar")

        job = ToyJob(folder, 50)
        with pytest.raises(LookupError, match="no such bar"):
            self.make_executor().run([job], watch)
        self._assert_no_worker_is_left(job)

    # Blocks that raise

    def test_three_attempts(self, folder: str) -> None:
        """A block that fails twice is tried again and succeeds."""

        def body(i: int) -> int:
            attempt = Path(folder, f"attempt{i}")
            text = attempt.read_text() if attempt.exists() else ""
            attempt.write_text(text + "x")
            if i == 3 and len(text) < 2:
                raise OSError("the disk is tired")
            return i

        job = ToyJob(folder, 8, body=body)
        events: list[Event] = []
        self.make_executor().run([job], events.append)
        assert job.done() == set(range(8))
        assert job.ran() == {**dict.fromkeys(range(8), 1), 3: 3}
        of_block = [(event.kind, event.attempt) for event in events if event.block == 3]
        assert of_block == [("started", 1), ("failed", 1), ("started", 2), ("failed", 2), ("started", 3), ("done", 3)]

    @pytest.mark.parametrize("phase", ["reader", "body", "writer"])
    def test_a_block_that_always_raises_is_named(self, tmp_path: Path, phase: str) -> None:
        """With its traceback and a command that shows it again; the other blocks are done, later jobs do not start."""

        def raise_at_5(i: int) -> int:
            return i // (i - 5)

        phases: dict[str, Any] = {phase: raise_at_5}
        job = ToyJob(str(tmp_path / "job"), 12, **phases)
        later = ToyJob(str(tmp_path / "later"), 2, key="later")
        with pytest.raises(BlockFailures) as caught:
            self.make_executor().run([job, later])
        (failure,) = caught.value.failures
        assert (failure.block, failure.attempts, caught.value.n_done) == (5, 3, 11)
        assert job.done() == set(range(12)) - {5}
        assert job.log("finished") == []
        assert not later.ran()
        text = str(caught.value)
        assert "ZeroDivisionError" in text
        assert "raise_at_5" in text
        command = text[text.index("python -m executors.worker") :].splitlines()[0]
        shown = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=False)
        assert shown.returncode == 1
        assert "return i // (i - 5)" in shown.stderr

    def test_an_exception_that_does_not_pickle(self, folder: str) -> None:
        """Its traceback arrives as text."""

        def body(i: int) -> None:
            class Locked(Exception):
                def __init__(self, *needed: int) -> None:
                    super().__init__(threading.Lock())

                def __reduce__(self) -> Any:
                    raise TypeError("stays here")

                def __str__(self) -> str:
                    return "locked in"

            raise Locked(i)

        with pytest.raises(BlockFailures, match="locked in"):
            self.make_executor().run([ToyJob(folder, 1, body=body)])

    # Stopping and going on

    def test_should_stop_cancels(self, folder: str) -> None:
        """The run stops soon, what is done stays on record, and a second run continues."""
        job = ToyJob(folder, 500, body=lambda i: time.sleep(0.01))
        with pytest.raises(Cancelled):
            self.make_executor().run([job], should_stop=lambda: len(job.done()) >= 5)
        done = job.done()
        assert 5 <= len(done) < 200
        self._assert_no_worker_is_left(job)
        job.n_blocks = max(done) + 10
        before = job.ran()
        self.make_executor().run([job])
        assert job.done() == set(range(job.n_blocks))
        assert all(job.ran()[i] == before[i] for i in done)

    def test_bookkeeping_is_bounded(self, folder: str) -> None:
        """A thousand million blocks do not become a list, nor do those that are done."""
        n_done, allocated = 0, [0, 0]

        def watch(event: Event) -> None:
            nonlocal n_done
            if event.kind == "done":
                n_done += 1
                if n_done in (self.n_trivial // 4, self.n_trivial):
                    allocated[n_done == self.n_trivial] = sys.getallocatedblocks()

        with pytest.raises(Cancelled):
            self.make_executor().run([ToyJob(folder, 10**9, files=False)], watch, lambda: n_done >= self.n_trivial)
        assert allocated[1] - allocated[0] < self.n_trivial // 10

    def test_ctrl_c_leaves_a_state_that_a_second_run_continues(self, tmp_path: Path, folder: str) -> None:
        """SIGINT to a script without a ``__main__`` guard: KeyboardInterrupt, no orphans, records whole."""
        job = ToyJob(folder, 400, body=lambda i: i + 100)
        script = self._start_script(tmp_path, job, seconds=0.02)
        wait_until(lambda: len(job.done()) >= 8)
        os.killpg(script.pid, signal.SIGINT)
        out, err = script.communicate(timeout=30)
        assert script.returncode != 0
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1
        assert out == "the script ran\n"
        self._assert_no_worker_is_left(job)
        done = job.done()
        assert 8 <= len(done) < 400
        assert sum(job.ran().values()) - len(done) <= self.make_executor().hints.workers
        job.n_blocks = max(done) + 5
        before = job.ran()
        self.make_executor().run([job])
        assert job.results() == {i: str(i + 100).encode() for i in range(job.n_blocks)}
        assert all(job.ran()[i] == before[i] for i in done)

    def test_a_script_needs_no_guard(self, tmp_path: Path, folder: str) -> None:
        """A lambda that closes over a variable and refers to a global of the script runs in workers; the script runs once."""
        job = ToyJob(folder, 6)
        script = self._start_script(tmp_path, job, seconds=0)
        out, err = script.communicate(timeout=30)
        assert (out, err) == ("the script ran\nthe run ended\n", "")
        assert job.results() == {i: str(i + 100).encode() for i in range(6)}

    def test_workers_die_with_a_driver_that_is_killed(self, tmp_path: Path, folder: str) -> None:
        """Also when a block would go on for long."""
        job = ToyJob(folder, 4)
        script = self._start_script(tmp_path, job, seconds=60)
        wait_until(lambda: len(job.pids()) == self.make_executor().hints.workers)
        script.kill()
        script.communicate(timeout=30)
        self._assert_no_worker_is_left(job)
        assert job.done() == set()

    # Workers that die

    @pytest.mark.usefixtures("_killing")
    def test_a_killed_worker_is_noticed_and_its_block_runs_again(self, folder: str) -> None:
        """SIGKILL from outside in the middle of a block."""
        flag = Path(folder, "waited")

        def body(i: int) -> int:
            if i == 4 and not flag.exists():
                flag.touch()
                time.sleep(60)
            return i

        job = ToyJob(folder, 20, body=body)
        killed: list[float] = []

        def kill() -> None:
            wait_until(flag.exists)
            time.sleep(0.5)  # the block before may still be in the hands of the writer, and would rightly run again
            os.kill(job.pids(4)[0], signal.SIGKILL)
            killed.append(time.monotonic())

        lost: list[tuple[Event, float]] = []
        killer = threading.Thread(target=kill)
        killer.start()
        self.make_executor().run([job], lambda event: lost.append((event, time.monotonic())) if event.kind == "lost" else None)
        killer.join()
        first, second = job.pids(4)
        assert not is_alive(first)
        assert second != first
        assert job.ran() == {**dict.fromkeys(range(20), 1), 4: 2}
        assert job.done() == set(range(20))
        assert [event.attempt for event, _ in lost if event.block == 4] == [1]
        assert "kill" in lost[0][0].message
        assert lost[0][1] - killed[0] < 1.5
        assert all(event.attempt == 0 for event, _ in lost if event.block != 4)

    @pytest.mark.usefixtures("_killing")
    @pytest.mark.parametrize("phase", ["reader", "body", "writer"])
    def test_a_block_that_kills_its_process_is_set_aside(self, folder: str, phase: str) -> None:
        """After three processes; no other block is blamed."""

        def die_at_5(i: int) -> int:
            if i == 5:
                print("going down", file=sys.stderr, flush=True)
                os._exit(3)
            return i

        phases: dict[str, Any] = {phase: die_at_5}
        job = ToyJob(folder, 16, **phases)
        events: list[Event] = []
        with pytest.raises(BlockFailures, match=r"(?s)code 3.*going down" if self.tells_deaths else "killed") as caught:
            self.make_executor().run([job], events.append)
        assert [(failure.block, failure.attempts) for failure in caught.value.failures] == [(5, 3)]
        assert job.done() == set(range(16)) - {5}
        attempts = [event.attempt for event in events if event.kind == "lost" and event.block == 5]
        assert attempts in ([1, 2, 3], [0, 1, 2, 3])  # 0 where it took a worker down that was busy with another block

    @pytest.mark.usefixtures("_killing")
    def test_workers_that_cannot_start_stop_the_run(self, folder: str) -> None:
        """The error shows how they died and what they printed."""

        def opener(device: str) -> None:
            raise RuntimeError(f"no driver for {device}")

        job = ToyJob(folder, 1000, opener=opener)
        with pytest.raises(WorkersFailed, match=r"(?s)code 1.*no driver for" if self.tells_deaths else "no driver for"):
            self.make_executor().run([job])
        assert not job.ran()

    @pytest.mark.usefixtures("_killing")
    def test_workers_that_die_on_every_block_stop_the_run(self, folder: str) -> None:
        """Rather than burn three processes for each of a million blocks."""
        job = ToyJob(folder, 1_000_000, body=lambda i: os.kill(os.getpid(), signal.SIGSEGV))
        with pytest.raises(WorkersFailed, match="signal 11" if self.tells_deaths else "killed"):
            self.make_executor().run([job])
        assert len(job.pids()) < 100
        self._assert_no_worker_is_left(job)

    # Helpers

    def _start_script(self, tmp_path: Path, job: ToyJob, seconds: float) -> subprocess.Popen[str]:
        path = tmp_path / "script.py"
        path.write_text(_SCRIPT.format(make=self.make_source, seconds=seconds, folder=job.folder, n_blocks=job.n_blocks))
        command = [sys.executable, "-W", "error", str(path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def _assert_no_worker_is_left(self, job: ToyJob) -> None:
        workers = set(job.pids()) - {os.getpid()}
        wait_until(lambda: not any(is_alive(pid) for pid in workers), 10)
