"""Operations: one module per family, a node and its rules together. Kernels are named, not imported."""
