"""Parts that need no SLURM: batches, logs of events, options, errors."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors import Slurm
from executors.slurm import _leave
from executors.slurm_files import Entry, EventLog, RoundFolder, RunFolder, read_events
from executors.slurm_gate import _batch_size, _batches, _read_round, error_of
from executors.slurm_script import _TRANSIENT, Options
from executors.slurm_task import among, held, without
from executors.toy_job import ToyJob

RANGES = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda cuts: [range(a, b) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)
BLOCKS = st.sets(st.integers(0, 60), max_size=8)


@given(RANGES, BLOCKS)
def test_ranges_and_blocks_are_split_like_sets(ranges, blocks):
    inside = {i for r in ranges for i in r}
    assert set(among(ranges, blocks)) == inside & blocks
    left = list(without(ranges, blocks))
    assert [i for r in left for i in r] == sorted(inside - blocks)
    assert all(left)


@given(RANGES, BLOCKS, st.integers(1, 9))
def test_batches_hold_every_block_once_and_those_that_were_lost_alone(ranges, blocks, per_task):
    attempts = dict.fromkeys(among(ranges, blocks), 1)
    batches = [[i for r in batch for i in r] for batch in _batches(ranges, attempts, per_task)]
    assert sorted(i for batch in batches for i in batch) == sorted(i for r in ranges for i in r)
    assert all(0 < len(batch) <= per_task for batch in batches)
    assert all(len(batch) == 1 for batch in batches if set(batch) & set(attempts))


@pytest.mark.parametrize(
    ("n", "seconds", "options", "expected"),
    [
        (12, 0.0, {"throttle": 2}, 6),  # one batch a slot
        (12, 0.0, {"throttle": 8, "cpus": 4}, 4),  # no CPU without a block
        (10**9, 1.0, {}, 300),  # as much as batch_seconds allows
        (600, 0.5, {"throttle": 2}, 100),  # three waves of two tasks, none shorter than need be
        (10**9, 1.0, {"cpus": 4}, 1200),
        (2_000, 1.0, {"throttle": 2}, 250),  # four tasks a slot
        (100, 1.0, {"throttle": 16}, 7),  # a single wave
        (100, 1000.0, {}, 1),
    ],
)
def test_the_size_of_a_batch(n, seconds, options, expected):
    assert _batch_size(n, seconds, Options(**options))[0] == expected


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path):
    log = EventLog(tmp_path / "log")
    for i in range(3):
        log.append(Entry("started", i, 1, "pid 1"))
    log.close()
    raw = (tmp_path / "log").read_bytes()
    whole = [offset for _, offset in read_events(tmp_path / "log")]
    for size in range(len(raw)):
        (tmp_path / "log").write_bytes(raw[:size])
        assert [entry.block for entry, _ in read_events(tmp_path / "log")] == list(range(sum(o <= size for o in whole)))
    (tmp_path / "log").write_bytes(raw[:-1] + b"\0")
    assert [entry.block for entry, _ in read_events(tmp_path / "log", whole[0])] == [1]


@pytest.mark.parametrize(("kinds", "expected"), [([], {5}), (["done"], set()), (["failed"], set()), (["stopping"], {5})])
def test_blocks_that_a_task_held_when_it_ended(tmp_path, kinds, expected):
    log = EventLog(tmp_path / "log")
    for kind in ["started", *kinds]:
        log.append(Entry(kind, -1 if kind == "stopping" else 5, 1))
    log.close()
    open_, told = held(tmp_path / "log")
    assert (set(open_), told) == (expected, "stopping" in kinds)


def test_a_block_whose_task_died_between_record_and_note_is_told_as_done(tmp_path):
    round_ = RoundFolder(tmp_path)
    round_.create([[range(9)]], {}, 30.0)
    log = round_.new_event_log(0, 0)
    for block in (4, 5):
        log.append(Entry("started", block, 1, "pid 1 of task 0 on n1"))
    log.close()
    outcome = _read_round(round_, [range(5, 9)])
    assert outcome.attempts == {5: 1}
    assert "task 0 ended without a word" in outcome.why[5].message
    notes = [(entry.kind, entry.block) for entry, _ in read_events(round_.event_logs()[-1])]
    assert notes == [("done", 4), ("lost", 5)]


def test_stages_override_options():
    options = Slurm("main", cpus=2, stages={"water*": {"gpus": 1, "partition": "gpu"}}).options
    assert (options.of_stage("watershed").gpus, options.of_stage("watershed").partition) == (1, "gpu")
    assert options.of_stage("relabel") == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": {"x": {"memory": "1G"}}}, "no parameter 'memory'"),
        ({"gate": "none"}, "neither 'slurm' nor 'driver'"),
        ({"cpus": 0}, "must all be positive"),
        ({"throttle": 0}, "must all be positive"),
        ({"poll_s": 0}, "must all be positive"),
    ],
)
def test_parameters_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Slurm(**options)


@pytest.mark.parametrize(
    ("text", "transient"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy", False),
    ],
)
def test_errors_that_pass_are_told_from_those_that_stay(text, transient):
    assert bool(_TRANSIENT.search(text)) is transient


def test_a_run_is_found_again_with_all_that_was_asked(tmp_path):
    job = ToyJob(str(tmp_path), 3)
    run = RunFolder.plan([job], Slurm(cpus=3, setup=["module load x"], stages={"a": {"time": 5}}).options)
    run.create([job])
    (found,) = RunFolder.all_in(tmp_path)
    assert found.name == run.name
    assert found.state() == run.state()
    assert Slurm.like(found).options == Slurm(cpus=3, setup=["module load x"], stages={"a": {"time": 5}}).options
    found.save_report("workers", text="it hurts")
    assert str(error_of(found)) == "it hurts"


def test_without_slurm_the_error_says_what_to_use(tmp_path, monkeypatch):
    from executors.protocol import WorkersFailed

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkersFailed, match=r"scontrol is not found on this machine.*Multiprocessing\(\)"):
        Slurm().run([ToyJob(str(tmp_path / "job"), 3)])


@pytest.mark.parametrize(("answer", "leaves"), [("n\n", True), ("N\n", True), ("\n", False), ("y\n", False), ("\x04", False)])
def test_ctrl_c_at_a_terminal_asks(monkeypatch, capsys, answer, leaves):
    keyboard, terminal = os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(keyboard, answer.encode())
        assert _leave() is leaves
    os.close(keyboard)
    assert "Cancel the SLURM jobs of this run?" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert not _leave()
