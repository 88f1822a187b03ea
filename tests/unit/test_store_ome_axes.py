"""The rules of OME-Zarr for axes, as we check them, are those of ome-zarr-models."""

from __future__ import annotations

import itertools
import subprocess
import sys
from fractions import Fraction

import pytest
from ome_zarr_models import v04, v05
from pydantic import ValidationError

from volara_expr.geometry import Axis, Space
from volara_expr.store import ome

KINDS = ("space", "time", "channel")
ORDERS = [kinds for n in range(1, 6) for kinds in itertools.product(KINDS, repeat=n)]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_are_refused_as_by_ome_zarr_models(version, monkeypatch):
    model = v04.image.ImageAttrs if version == "0.4" else v05.image.ImageAttrs
    refused = 0
    for kinds in ORDERS:
        axes = tuple(Axis(f"a{k}", kind, "nanometer" if kind == "space" else None) for k, kind in enumerate(kinds))
        space = Space(axes, (Fraction(2),) * len(axes), (Fraction(0),) * len(axes))
        with monkeypatch.context() as patch:
            patch.setattr(ome, "_refusal", lambda axes: None)
            attributes = ome.write_multiscale([space], version, "a")
        try:
            model.model_validate(attributes.get("ome", attributes))
        except ValidationError:
            refused += 1
            with pytest.raises(ValueError, match="OME-Zarr cannot hold the axes a0"):
                ome.write_multiscale([space], version, "a")
        else:
            assert ome.write_multiscale([space], version, "a") == attributes
    assert 0 < refused < len(ORDERS)


def test_writing_imports_no_models(tmp_path):
    script = f"""
import sys, numpy as np, volara_expr as ve
ve.from_numpy(np.zeros((4, 4, 4))).write(r"{tmp_path}/a.zarr", progress=False)
print(sorted(n for n in ("pydantic", "ome_zarr_models", "numba", "scipy") if n in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
