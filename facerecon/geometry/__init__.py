"""Pure geometry: rotations, cameras, meshes, spherical-harmonic light, alignment."""

from facerecon.geometry import alignment, camera, lighting, mesh, rotation

__all__ = ["alignment", "camera", "lighting", "mesh", "rotation"]
