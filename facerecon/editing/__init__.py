"""Latent editing of face generators: measured attributes, and the latent traversals that change them (Sec. 3.1.1)."""
