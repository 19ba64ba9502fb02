"""Head models: coefficients to shape and landmarks, and the conversion of their source files."""

from facerecon.morphable.load import FACE_MODELS, load_face_model
from facerecon.morphable.model import MorphableModel, read_face_model

__all__ = ["FACE_MODELS", "MorphableModel", "load_face_model", "read_face_model"]
