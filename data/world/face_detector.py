"""How `data/weights/face_detector.safetensors` was made: facenet-pytorch's three files joined to one.

    python -m styleclip.data.world.face_detector FOLDER FILE

FOLDER is ``facenet_pytorch/data`` of the wheel of facenet-pytorch 2.6.0, FILE what is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from styleclip_core.files.checkpoint import open_checkpoint
from styleclip_core.models.mtcnn import FORMAT, DetectionSettings, Mtcnn
from styleclip_core.models.network import filled
from styleclip_core.models.weights import save_network


def join_facenet_weights(folder: str | Path, path: str | Path) -> None:
    """Join ``pnet.pt``, ``rnet.pt`` and ``onet.pt`` to one safetensors file.

    Raises:
        CheckpointError: If one of them is missing, damaged or of another architecture.
    """
    state: dict[str, Tensor] = {}
    for name in ("pnet", "rnet", "onet"):
        with open_checkpoint(Path(folder) / f"{name}.pt") as file:
            state |= {f"{name}.{key}": tensor for key, tensor in file.state(file.content).items()}

    detector = filled(lambda: Mtcnn(DetectionSettings()), state, what="face detector")
    save_network(detector, path, FORMAT)


if __name__ == "__main__":
    join_facenet_weights(*sys.argv[1:])
