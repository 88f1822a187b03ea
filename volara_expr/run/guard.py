"""What is made sure before a run: that it is the only driver, that inputs are what they were, and that nothing is replaced unasked."""

from __future__ import annotations

import difflib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from glob import escape, glob
from typing import Literal

from executors.protocol import Cancelled
from volara_expr.expr import Node, topological
from volara_expr.expr.digest import Function
from volara_expr.expr.show import tree
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.sources import StoredArray
from volara_expr.plan.targets import Output
from volara_expr.run.ledger import Ledger
from volara_expr.run.places import ATTRIBUTE, Place
from volara_expr.run.tables import graph_content
from volara_expr.store import delete as delete_array
from volara_expr.store import fingerprint, locate, open_array, read_attributes
from volara_expr.store.nodes import read_node

__all__ = ["Overwrite", "alone", "check_apart", "check_sources", "clear", "content_of", "is_blocked"]

logger = logging.getLogger("volara_expr")
Overwrite = bool | Literal["always"]

_held = threading.local()
"""Folders whose lock this thread holds: a block may itself compute something, in the same session's workspace."""


@contextmanager
def alone(folders: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the right to drive runs in these workspaces; wait while another driver, of any process, holds one of them.

    The system takes the locks back when their holder ends, however it ends.
    """
    mine: set[str] = vars(_held).setdefault("folders", set())
    with ExitStack() as locks:
        for folder in sorted({*folders} - mine):
            os.makedirs(folder, exist_ok=True)
            fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
            locks.callback(os.close, fd)
            told = False
            while not lock(fd, folder):
                if should_stop():
                    raise Cancelled(f"stopped while waiting for another run that writes to {folder}")
                if not told:
                    logger.warning("another run holds %s; waiting until it ends, then going on with what it left", folder)
                    told = True
                time.sleep(0.1)
            mine.add(folder)
            locks.callback(mine.discard, folder)
        yield


def lock(fd: int, folder: str) -> bool:
    """Take a lock if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.warning("the file system of %s has no locks (%s); see to it that no other run writes there now", folder, e)
    return True


def check_apart(named: Mapping[Output, Place], sources: Sequence[StoredArray | StoredTable]) -> None:
    """Check that no output would replace another one, or what it is computed from."""
    taken = [(s.url if isinstance(s, StoredArray) else s.path, "an input of this run") for s in sources]
    for o, place in named.items():
        if dict(o.options).get("format") == "level":
            continue
        mine = str(o.url) if place.kind == "array" else place.url
        for url, what in taken:
            a, b = os.path.realpath(mine) + os.sep, os.path.realpath(url) + os.sep
            if a.startswith(b) or b.startswith(a):
                raise ValueError(
                    f"the output {mine} and {url}, {what}, cannot both be there: one would replace the other. Write beside it"
                )
        taken.append((mine, "another output of this run"))


def is_blocked(output: Output, place: Place, overwrite: Overwrite) -> bool:
    """Whether something else stands where an output goes and is to be replaced.

    Raises
    ------
    FileExistsError
        It is not to be replaced; says what it is, and how its expression differs where that is known.
    """
    options = dict(output.options)
    if options.get("format") == "level":
        return False  # made and replaced with the finest level of its image
    url = str(output.url) if place.kind == "array" else place.url
    coarser = [locate(f"{url}/{k}") for k in range(1, options.get("levels", 1))]
    own = place.exists() and all(read_node(level) is not None for level in coarser)
    if (own and overwrite != "always") or not stands(place, url):
        return False
    if not overwrite:
        what, more = what_stands(output.node, place)
        raise FileExistsError(f"{url} exists and {what}; choose another name, or pass overwrite=True to replace it{more}")
    return True


def stands(place: Place, url: str) -> bool:
    """Whether there is anything at an output's place."""
    if place.kind == "file":
        return os.path.exists(url)
    return read_node(locate(url)) is not None


def what_stands(node: Node, place: Place) -> tuple[str, str]:
    """Say what is in the way of an output, and, where that is known, how its expression differs from the new one."""
    digest = None
    if place.kind == "array":
        try:
            digest = read_attributes(place.url).get(ATTRIBUTE, {}).get("digest")
        except FileNotFoundError:
            return "holds something else than an array of this format", ""
        if digest is None:
            return "was not written by volara_expr", ""
    about = place.ledger.describe()
    if digest == node.digest:
        mine = "holds the result of this expression"
        if about is None:
            return f"{mine}, but its ledger {place.folder} is gone, which says what is finished", ""
        if tuple(about["unit"]) != place.grid.block:
            return f"{mine} in write units of {tuple(about['unit'])}, not {place.grid.block} as asked for", ""
        return f"{mine} without all the levels asked for", ""
    for folder in ledgers(place):
        old = Ledger(folder, place.grid).describe()
        if old is not None and digest in (None, old["digest"]) and folder != place.folder:
            lines = difflib.ndiff(str(old["expression"]).splitlines(), tree([node]).splitlines())
            changed = "\n".join([d for d in lines if d[:1] in "-+"][:20]) or (
                "no line of their text, but in the code or a captured value of a function, or in the version of an operation"
            )
            return "holds the result of another expression", f". They differ in\n{changed}{opaque(node)}"
    return ("holds the result of another expression" if digest else "was not written by this expression"), opaque(node)


def opaque(node: Node) -> str:
    """Say which functions make an expression new in every session."""
    found = [v for n in topological([node]) for v in vars(n).values() if isinstance(v, Function) and v.opaque]
    return "".join(
        f"\n{f!r} never counts as the same function, since {f.opaque} cannot be compared; give map_blocks a name="
        for f in found
    )


def ledgers(place: Place) -> list[str]:
    """Return the folders of all ledgers that belong to an output's place, of any expression."""
    return [os.path.dirname(p) for p in glob(os.path.join(escape(os.path.dirname(place.folder)), "*", "node.json"))]


def clear(output: Output, place: Place) -> None:
    """Delete what stands where an output goes; first the ledgers, so that nothing half deleted counts as done."""
    for folder in ledgers(place):
        Ledger(folder, place.grid).discard()
    if place.kind == "file":
        os.unlink(place.url)
    elif stands(place, str(output.url)):  # a level of an image goes with the image
        delete_array(str(output.url))


def check_sources(sources: Sequence[StoredArray | StoredTable], when: str) -> None:
    """Check that the inputs are what they were when they were opened."""
    for s in sources:
        if isinstance(s, StoredArray):
            url, content = s.url, content_of(s.url)
        elif s.path.endswith(".duckdb"):
            from volara_expr.store.graph_db import GraphDB  # which loads DuckDB

            url, content = s.path, graph_content(GraphDB(s.path))
        else:
            continue  # a look-up table that a run of ours has just written
        if content != s.content:
            raise RuntimeError(f"the data of {url} changed {when}")


def content_of(url: str) -> str:
    """Return what the data of an array is: the expression that wrote it, or a fingerprint of the store.

    An array that a run of ours wrote completely is known by the digest of its expression; any other by its metadata and the
    sizes and times of up to 1,000 of its chunks.
    """
    try:
        mark = read_attributes(url).get(ATTRIBUTE)
    except FileNotFoundError:
        mark = None
    if mark and mark.get("complete"):
        return f"written:{mark['digest']}:{mark['incarnation']}"
    return f"found:{fingerprint(open_array(url))}"
