"""What is measured on a photo: faces, landmarks, mesh, identity, expression, age, masks. All frozen networks."""

from facerecon.perception.attributes import load_age_gender, load_expression
from facerecon.perception.corrections import LANDMARK_FORMATS, read_landmarks, read_mask
from facerecon.perception.detection import Detection, load_detector
from facerecon.perception.face_landmarker import load_expression_scores
from facerecon.perception.facemesh import load_facemesh
from facerecon.perception.identity import load_eval_identity, load_identity
from facerecon.perception.landmarks import load_landmarks68
from facerecon.perception.observe import MEAN_FIVE_POINTS, observe
from facerecon.perception.parsing import FaceParser, load_parser
from facerecon.perception.regressor import Coefficients, Regressor, RegressorConfig, load_regressor, save_regressor

__all__ = [
    "LANDMARK_FORMATS",
    "MEAN_FIVE_POINTS",
    "Coefficients",
    "Detection",
    "FaceParser",
    "Regressor",
    "RegressorConfig",
    "load_age_gender",
    "load_detector",
    "load_expression",
    "load_expression_scores",
    "load_facemesh",
    "load_identity",
    "load_eval_identity",
    "load_landmarks68",
    "load_parser",
    "load_regressor",
    "observe",
    "read_landmarks",
    "read_mask",
    "save_regressor",
]
