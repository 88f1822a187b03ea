"""The ledger: what counts as done after a cut, damage, a power cut or a full disk; and what a record costs."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors import Serial
from tests.integration.helpers import (
    BLOCK,
    CELLS,
    Stopping,
    blocks_run,
    contents,
    differing_bytes,
    logs,
    main_job,
    store_affinities,
    write,
)
from volara_expr.geometry import BlockGrid, Box
from volara_expr.run import ledger as ledger_module
from volara_expr.run.ledger import HEADER, Ledger, LedgerError, record_struct

GRID = BlockGrid(Box((0, 0), (50, 30)), (10, 10), (0, 0))
RECORD = record_struct(2).size
OTHER_BOOT = b"11111111-2222-3333-4444-555555555555"


def cell(*index: int) -> Box:
    return Box(index, tuple(i + 1 for i in index))


def filled(folder: Path, cells: int = 5, sync_after: int | None = None) -> tuple[Ledger, Path]:
    """A ledger of `cells` finished units, (0, 0), (1, 0), ..., and its log."""
    ledger = Ledger(folder / "ledger", GRID)
    ledger.create({"digest": "d"})
    log = ledger.writer("worker")
    for k in range(cells):
        log.append([(cell(k, 0), 0)])
        if k + 1 == sync_after:
            log.sync()
    assert log.fd is not None
    os.close(log.fd)  # without the sync of `close`, as when it is killed
    log.fd = None
    (path,) = (folder / "ledger/done").iterdir()
    return ledger, path


def n_done(ledger: Ledger) -> int:
    done = ledger.done()
    return 0 if done is None else int(done.sum())


def reboot(path: Path) -> None:
    """Make a log look as if the machine had been started anew since it was written."""
    raw = path.read_bytes()
    path.write_bytes(raw[: HEADER.size - 36] + OTHER_BOOT + raw[HEADER.size :])


def flip(path: Path, record: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[HEADER.size + record * RECORD] ^= 1
    path.write_bytes(raw)


def test_every_cut_leaves_whole_records(tmp_path: Path) -> None:
    ledger, path = filled(tmp_path)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert n_done(ledger) == max(0, size - HEADER.size) // RECORD


@pytest.mark.parametrize("record", [0, 3, 4])
def test_damage_is_an_error_that_names_file_and_remedy(record: int, tmp_path: Path) -> None:
    ledger, path = filled(tmp_path)
    flip(path, record)
    with pytest.raises(
        LedgerError, match=rf"{path.name}.*record {record} of 5 fails its checksum.*Delete the folder {ledger.folder}"
    ):
        ledger.done()


@given(at=st.integers(0, HEADER.size + 5 * RECORD - 1), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_adds_a_unit(at: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    ledger, path = filled(tmp_path_factory.mktemp("flip"))
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
    try:
        done = ledger.done()
    except LedgerError:
        return
    assert done is None or not (done & ~np.isin(np.arange(15).reshape(5, 3), np.arange(5) * 3)).any()


def test_unreadable_description_is_an_error(tmp_path: Path) -> None:
    ledger, _ = filled(tmp_path)
    (ledger.folder / "node.json").write_text('{"digest": ')
    with pytest.raises(LedgerError, match=r"node\.json cannot be read.*Delete the folder"):
        ledger.done()


def test_power_cut_keeps_what_was_synced(tmp_path: Path) -> None:
    ledger, path = filled(tmp_path, sync_after=3)
    assert n_done(ledger) == 5, "a killed process loses nothing"
    reboot(path)
    assert n_done(ledger) == 3


def test_what_a_power_cut_leaves_behind_the_mark_counts_as_nothing(tmp_path: Path) -> None:
    ledger, path = filled(tmp_path, sync_after=3)
    flip(path, 4)  # records 0 to 2, the mark, and two more
    with pytest.raises(LedgerError):
        ledger.done()
    reboot(path)
    assert n_done(ledger) == 3
    path.write_bytes(path.read_bytes()[: HEADER.size + 4 * RECORD] + bytes(7 * RECORD))
    assert n_done(ledger) == 3
    flip(path, 1)
    with pytest.raises(LedgerError, match="record 1"):
        ledger.done()
    path.write_bytes(bytes(path.stat().st_size))
    assert n_done(ledger) == 0


def test_log_of_a_replaced_output_does_not_count(tmp_path: Path) -> None:
    ledger, path = filled(tmp_path)
    old = path.read_bytes()
    ledger.discard()
    ledger.create({"digest": "d"})
    path.write_bytes(old)
    assert n_done(ledger) == 0


def test_second_driver_joins_the_incarnation_of_the_first(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "l", GRID), Ledger(tmp_path / "l", GRID)
    assert one.create({"digest": "d"}) == two.create({"digest": "d"})


def test_short_write_is_taken_back(tmp_path: Path) -> None:
    """A limit on file size cuts a record short, as a full disk does; what is appended later must stay readable."""
    ledger = Ledger(tmp_path / "ledger", GRID)
    ledger.create({"digest": "d"})
    log = ledger.writer("worker")
    log.append([(cell(0, 0), 0)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.size + RECORD // 2, limit[1]))
    try:
        with pytest.raises(OSError, match=rf"took {RECORD // 2} of {RECORD} bytes.*free space and run the same line again"):
            log.append([(cell(1, 0), 0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    log.append([(cell(2, 0), 0)])
    log.close()
    done = ledger.done()
    assert done is not None
    assert np.argwhere(done).tolist() == [[0, 0], [2, 0]]


def test_full_disk_before_the_first_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", GRID)
    ledger.create({"digest": "d"})
    log = ledger.writer("worker")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(OSError, match="took 10 of"):
            log.append([(cell(1, 0), 0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert n_done(ledger) == 0
    log.append([(cell(1, 0), 0)])
    log.close()
    assert n_done(ledger) == 1


def test_damaged_ledger_stops_a_run_and_the_remedy_helps(tmp_path: Path) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr"))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, job, Stopping(5, block=BLOCK))
    path = next(p for p in logs(tmp_path) if "/frags/" in str(p))
    size = record_struct(3).size
    raw = bytearray(path.read_bytes())
    raw[HEADER.size + size] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(LedgerError, match="Delete the folder") as caught:
        write(tmp_path, job)
    named = Path(str(caught.value).split("Delete the folder ")[1].split(" and run")[0])
    assert named == path.parent.parent
    shutil.rmtree(named)
    write(tmp_path, job, Serial(block=BLOCK), overwrite=True)
    (tmp_path / "fresh").mkdir()
    write(tmp_path / "fresh", job)
    assert differing_bytes(contents(tmp_path), contents(tmp_path / "fresh")) == 0


def test_truncated_ledger_costs_just_the_torn_block(tmp_path: Path) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr"))
    frags = {"frags": job["frags"]}
    write(tmp_path, frags, Serial(block=BLOCK))
    before = contents(tmp_path)
    (path,) = logs(tmp_path)
    path.write_bytes(path.read_bytes()[: -record_struct(3).size - 3])  # the mark, and a piece of the last record
    ran = blocks_run(write(tmp_path, frags, Serial(block=BLOCK)))
    assert list(ran.values()) == [1]
    assert contents(tmp_path) == before


def test_reboot_runs_again_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr"))
    frags = {"frags": job["frags"]}
    write(tmp_path, frags, Serial(block=BLOCK))
    (path,) = logs(tmp_path)
    raw = path.read_bytes()
    size = record_struct(3).size
    mark = raw[-size:]
    path.write_bytes(raw[: HEADER.size + 10 * size] + mark + raw[HEADER.size + 10 * size : -size])
    monkeypatch.setattr(ledger_module, "boot_id", lambda: "another start of this machine")
    ran = blocks_run(write(tmp_path, frags, Serial(block=BLOCK)))
    assert list(ran.values()) == [CELLS - 10]


def test_a_record_costs_little(tmp_path: Path) -> None:
    """Under 0.2 ms to append one, and under 20 us each to read them again (measured: 10 us and 2 us)."""
    grid = BlockGrid(Box((0, 0, 0), (100, 100, 1)), (1, 1, 1), (0, 0, 0))
    ledger = Ledger(tmp_path / "l", grid)
    ledger.create({"digest": "d"})
    log = ledger.writer("w")
    began = time.process_time()
    for i in range(100):
        for j in range(100):
            log.append([(cell(i, j, 0), 0)])
    written = time.process_time() - began
    log.close()
    began = time.process_time()
    assert ledger.complete()
    read = time.process_time() - began
    print(f"append {written * 100:.1f} us, read {read * 100:.1f} us per record of {struct.calcsize('<6qIII')} bytes")
    assert written < 2
    assert read < 0.2
