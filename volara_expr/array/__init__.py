"""The fluent handles: one mixin per family, thin methods that hold the documentation."""
