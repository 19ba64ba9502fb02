"""Head to head: registration, transfer of textures and expressions, resampled decoders, heads of other programs."""
