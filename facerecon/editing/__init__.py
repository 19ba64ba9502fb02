"""Latent editing of the open face generator: what a face shows, measured, and the walks that change it (Sec. 3.1.1)."""
