"""Pure functions over arrays and tensors; they know neither files nor plans."""
