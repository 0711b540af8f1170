"""The embedded world: its models, its photographs, and the recipe that made them."""

from pathlib import Path

if __name__ != "styleclip.data":  # a second name would load every module twice
    raise ImportError("the folder data/ is the package styleclip.data: import it by that name")

_HERE = Path(__file__).parent
WEIGHTS = _HERE / "weights"
PHOTOGRAPHS = _HERE / "photographs"
GENERATOR = WEIGHTS / "generator.safetensors"
CLIP = WEIGHTS / "clip.pt"
ENCODER = WEIGHTS / "encoder.safetensors"
REGRESSOR = WEIGHTS / "regressor.safetensors"
IDENTITY = WEIGHTS / "identity.safetensors"
FACE_DETECTOR = WEIGHTS / "face_detector.safetensors"
EDITS = _HERE / "edits.yaml"
ATTRIBUTES = _HERE / "attributes.yaml"
LABELS = PHOTOGRAPHS / "labels.csv"
