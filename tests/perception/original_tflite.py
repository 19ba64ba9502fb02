"""Records what the face landmarker's own runtime makes of a synthetic picture and of synthetic points.

Oracle of test_original_runtime.py; run by hand when the package changes, where ``ai-edge-litert`` is installed:
    python original_tflite.py FOLDER_OF_TFLITE_FILES > original_tflite.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

SIZE = 256


def outputs(name: str, x: np.ndarray) -> list[dict]:
    """Of each output: its length, its Euclidean norm, and up to 24 evenly spaced values."""
    net = Interpreter(str(Path(sys.argv[1]) / name))
    net.allocate_tensors()
    net.set_tensor(net.get_input_details()[0]["index"], x.astype(np.float32))
    net.invoke()
    found = []
    for output in sorted(net.get_output_details(), key=lambda item: item["name"])[:2]:
        values = net.get_tensor(output["index"]).ravel().astype(np.float64)
        count = min(24, len(values))
        at = [i * len(values) // count for i in range(count)]
        norm = float(f"{np.linalg.norm(values):.7g}")
        found.append({"length": len(values), "norm": norm, "at": at, "values": [float(f"{values[i]:.7g}") for i in at]})
    return found


y, x, c = np.meshgrid(np.arange(SIZE), np.arange(SIZE), np.arange(3), indexing="ij")
picture = 0.5 + 0.5 * np.sin(0.11 * x * (c + 1) + 0.07 * y + 0.9 * c) * np.cos(0.05 * y - 0.0013 * x * y)
i = np.arange(146)
points = np.stack([120 + 60 * np.sin(1.7 * i), 130 + 70 * np.cos(2.3 * i)], 1)
recorded = {
    "facemesh478": outputs("face_landmarks_detector.tflite", picture[None]),
    "expression52": outputs("face_blendshapes.tflite", points[None]),
}
print(json.dumps(recorded, indent=1))
