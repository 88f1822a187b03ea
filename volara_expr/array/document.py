"""YAML and JSON as plain data that knows its lines. Nothing is made but texts, numbers, lists and mappings.

Plain scalars are read as in JSON and YAML 1.2: ``no``, ``on`` and dates are texts, ``1e-5`` is a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Lines", "PipelineError", "parse", "parse_value", "to_yaml"]

INTEGER = re.compile(r"[-+]?\d+")
FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?")
WORDS: dict[str, Any] = {"": None, "null": None, "~": None, "true": True, "false": False}
SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
TAGS = {f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")}
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class PipelineError(ValueError):
    """A mistake in a pipeline file; names file, line and key."""


class Lines(dict[Any, Any]):
    """A mapping that knows the line of each key.

    Attributes
    ----------
    lines : dict of key to int
    line : int
        Where it begins.
    """

    def __init__(self, line: int) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}
        self.line = line


def parse(text: str, name: str) -> Any:
    """Return the content of a YAML or JSON text; mappings are `Lines`.

    Raises
    ------
    PipelineError
        If it is neither, holds a key twice, or a tag.
    """
    try:
        node = yaml.compose(text, LOADER)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise PipelineError(f"{name}:{mark.line + 1 if mark else 1}: {e.problem or e.context}; this is no YAML") from e
    except yaml.YAMLError as e:
        raise PipelineError(f"{name}: {e}; this is no YAML") from e
    return None if node is None else _value(node, name)


def _value(node: yaml.Node, name: str) -> Any:
    line = node.start_mark.line + 1
    if node.tag not in TAGS:
        raise PipelineError(f"{name}:{line}: the tag {node.tag} is not read; write plain values")
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else parse_scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(n, name) for n in node.value]
    found = Lines(line)
    for key_node, value_node in node.value:
        key, at = _value(key_node, name), key_node.start_mark.line + 1
        if not isinstance(key, (str, int)):
            raise PipelineError(f"{name}:{at}: the key {key!r} is neither a text nor a whole number")
        if key in found:
            raise PipelineError(f"{name}:{at}: {key!r} is here and in line {found.lines[key]}; keep one")
        found[key], found.lines[key] = _value(value_node, name), at
    return found


def parse_scalar(text: str) -> Any:
    """Return what an unquoted scalar stands for."""
    if text in WORDS:
        return WORDS[text]
    if text in SPECIAL:
        return float(SPECIAL[text])
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def parse_value(text: str, what: str) -> Any:
    """Return the value of a command line's ``key=value``: a number, a text, a list as in ``[1, 2]``."""
    return parse(text, what)


class _Dumper(DUMPER):  # type: ignore[misc]
    """Lists of plain values on one line; all that `parse` would read as something else in quotes."""


def _list(dumper: Any, data: list[Any]) -> Any:
    flat = not any(isinstance(v, dict) for v in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _text(dumper: Any, data: str) -> Any:
    style = None if isinstance(parse_scalar(data), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _text)


def to_yaml(content: dict[str, Any]) -> str:
    """Return plain data as YAML."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return text


def read(path: Path) -> Any:
    """Return the content of a file."""
    return parse(path.read_text(), path.name)
