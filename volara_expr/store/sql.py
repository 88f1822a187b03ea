"""What statements to DuckDB are put together from."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import duckdb

__all__ = ["double", "identifier", "literal", "mebibytes", "quiet"]


def quiet(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep DuckDB from drawing a progress bar of its own, which it prints to logs too after two seconds."""
    with suppress(duckdb.InvalidInputException):  # a notebook without ipywidgets, where it can draw none anyway
        connection.execute("SET enable_progress_bar = false")


def identifier(name: str) -> str:
    """Quote the name of a column."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Quote a text."""
    return "'" + value.replace("'", "''") + "'"


def double(value: Any) -> str:
    """Write a number with all its digits."""
    return f"CAST('{float(value)!r}' AS DOUBLE)"


def mebibytes(size_bytes: int) -> str:
    """Write a size as settings take it."""
    return f"{max(1, size_bytes >> 20)}MiB"
