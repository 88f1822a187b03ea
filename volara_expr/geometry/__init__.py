"""Integer boxes, block grids and physical space; knows nothing of arrays or expressions."""

from volara_expr.geometry.box import Box, Halo
from volara_expr.geometry.grid import BlockGrid
from volara_expr.geometry.space import Axis, Roi, Space

__all__ = ["Axis", "BlockGrid", "Box", "Halo", "Roi", "Space"]
