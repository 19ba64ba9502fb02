"""Scripts that fit heads and textures: reconstruct, render, transfer, invert_texture, evaluate."""
