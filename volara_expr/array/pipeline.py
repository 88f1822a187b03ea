"""Pipelines as files: expressions written down, with parameters, and read again.

A file holds `parameters` with their defaults, `steps` by name, and the `outputs`. A step names an operation: a method of an array or
a graph (`op: gaussian`, of the step after `of:`), a function that begins an expression (`op: open`), or a node by its class (`op:
GaussianFilter`), as `to_json` writes them. ``${name}`` stands for a parameter or for another step.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volara_expr.array import writing
from volara_expr.array.base import Expression
from volara_expr.array.builder import Builder, near
from volara_expr.array.document import PipelineError, parse

if TYPE_CHECKING:
    from volara_expr.array.writing import Run
    from volara_expr.plan.plan import Plan

__all__ = ["Pipeline", "from_json", "load_pipeline"]


class Pipeline:
    """The content of a pipeline file.

    Attributes
    ----------
    steps : dict of str to Array, Graph or Lut
        All steps, by name; ``pipeline["name"]`` is one of them.
    outputs : dict of str to Array, Graph or Lut
        What the file says is to be written, by url.
    options : dict
        Of `volara_expr.write`, as the file gives them.
    result : Array, Graph, Lut or None
        The expression that the file stands for, if it is one.
    """

    def __init__(self, content: Any, file: str, parameters: Mapping[str, Any]) -> None:
        builder = Builder(content, file, parameters)
        self.file = file
        self.steps: dict[str, Any] = {name: builder.named(name) for name in builder.sources}
        self.outputs = {str(builder.value(url)): self._output(builder, url) for url in builder.section("outputs")}
        known = [n for n in inspect.signature(writing.write).parameters if n != "expressions"]
        options = builder.section("options")
        for name in options:
            if name not in known:
                raise builder.error(
                    options, name, f"no option of write{near(name, known)}; it has {', '.join(known)}", "options"
                )
        self.options = {name: builder.evaluated("options", name) for name in options}
        self.result = builder.evaluated("", "result") if "result" in builder.root else None

    def _output(self, builder: Builder, url: str) -> Expression:
        found = builder.evaluated("outputs", url)
        if not isinstance(found, Expression):
            section = builder.section("outputs")
            raise builder.error(
                section, url, f"{section[url]!r} is no array, graph or look-up table; write ${{step}}", "outputs"
            )
        return found

    def __getitem__(self, name: str) -> Any:
        if name not in self.steps:
            raise KeyError(f"{self.file} has no step {name!r}{near(name, self.steps)}; it has {', '.join(self.steps)}")
        return self.steps[name]

    def plan(self, executor: Any = None) -> Plan:
        """Return what `write` would do, with the workers and the memory of an executor; by default that of the file."""
        from volara_expr.run.driver import plan_for

        layout = {k: v for k, v in self.options.items() if k in ("chunks", "shards", "levels", "format")}
        outputs = writing.outputs_of(self._outputs(), **layout)
        return plan_for(outputs, None, writing.executor_of(executor or self.options.get("executor")), None)

    def write(self, **options: Any) -> dict[str, Any]:
        """Compute and store the outputs, and return them opened; options as those of `volara_expr.write`, before the file's."""
        return writing.write(self._outputs(), **{**self.options, **options})

    def submit(self, **options: Any) -> Run:
        """Start what `write` does, and return a `Run`."""
        return writing.submit(self._outputs(), **{**self.options, **options})

    def _outputs(self) -> dict[Any, Any]:
        if not self.outputs:
            raise PipelineError(f"{self.file} names no outputs; add them, as in outputs: {{out.zarr/seg: ${{seg}}}}")
        return self.outputs

    def __repr__(self) -> str:
        return f"Pipeline({self.file}: {len(self.steps)} steps; outputs {', '.join(self.outputs) or 'none'})"


def load_pipeline(path: str | os.PathLike[str], **parameters: Any) -> Pipeline:
    """Read a pipeline file; nothing is computed.

    A file names the functions of `map_blocks` and the operations of other packages by their import path, and reading it imports
    those: read files from people whose programs you would run.

    Parameters
    ----------
    path : str or PathLike
        YAML or JSON. Paths in it are relative to the working directory.
    **parameters
        Values for the file's parameters; those without a default (null) must be given.

    Returns
    -------
    Pipeline
        With `steps`, `outputs`, `plan`, `write` and `submit`.

    Raises
    ------
    PipelineError
        A ValueError that names file, line and key.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, volara_expr as ve
    >>> text = '''
    ... volara_expr: 1
    ... parameters: {folder: null, sigma: 1}
    ... steps:
    ...   raw: {op: open, url: "${folder}/raw.zarr"}
    ...   smooth: {op: gaussian, of: "${raw}", sigma: "${sigma}"}
    ... outputs:
    ...   ${folder}/out.zarr/smooth: ${smooth}
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     raw = ve.from_numpy(np.eye(4)).write(f"{folder}/raw.zarr", progress=False)
    ...     file = pathlib.Path(folder, "smooth.yaml")
    ...     size = file.write_text(text)
    ...     pipeline = ve.load_pipeline(file, folder=folder, sigma=2)
    >>> pipeline["smooth"].key == raw.gaussian(2).key
    True
    """
    file = Path(path)
    return Pipeline(parse(file.read_text(), file.name), file.name, parameters)


def from_json(text: str) -> Any:
    """Return the expression of a text that `to_json` or `to_yaml` wrote: the same one, by its key.

    Reading imports the functions and the operations of other packages that the text names, see `load_pipeline`.

    Parameters
    ----------
    text : str

    Returns
    -------
    Array, Graph or Lut

    Raises
    ------
    PipelineError
        A ValueError that names line and key.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> smooth = ve.from_numpy(np.array([1, 9, 2])).gaussian(1)
    >>> ve.from_json(smooth.to_json()).key == smooth.key
    True
    """
    pipeline = Pipeline(parse(text, "text"), "text", {})
    if not isinstance(pipeline.result, Expression):
        raise PipelineError("text: no result; add it, as in result: ${step}")
    return pipeline.result
