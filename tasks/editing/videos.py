"""Frames -> an MP4 video (H.264) that every browser plays."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence

import numpy as np

from styleclip_core.errors import StyleCLIPError


class NoVideoEncoderError(StyleCLIPError):
    """The package that encodes videos is not installed."""


def check_encoder() -> None:
    """Fail at once if videos cannot be encoded here.

    Raises:
        NoVideoEncoderError: If the package ``av`` is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise NoVideoEncoderError(
            "videos need the package 'av': pip install 'styleclip[video]', or set frames to 0"
        )


def encode_video(frames: Sequence[np.ndarray], *, rate: int = 12) -> bytes:
    """Encode frames ``[H, W, 3]`` uint8 at ``rate`` frames per second; odd sides lose their last row.

    Raises:
        NoVideoEncoderError: If the package ``av`` is not installed.
    """
    check_encoder()
    import av

    # H.264 halves the resolution of colours, so sides must be even
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}

        for pixels in frames:
            picture = np.ascontiguousarray(pixels[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        # the encoder holds frames back until it is told that there are no more
        container.mux(stream.encode())
    return buffer.getvalue()
