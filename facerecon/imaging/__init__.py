"""Pictures as tensors: files, color, masks, pyramids, Poisson editing, warps."""
