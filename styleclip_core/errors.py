"""Errors a caller can act on.

StyleCLIPError
├── ArtifactConflictError    two artifacts that do not belong together, or other content in the same place
├── CheckpointError          a weights file is missing, damaged or of another architecture
├── FaceError                a face cannot be cut out of a photograph, or put back
│   ├── LandmarksError       landmarks that are no face
│   └── NoFaceError          there is no face in a photograph
├── ImageError               an input image cannot be used
│   ├── ImageDecodeError     it is not an image, or its bytes are damaged
│   └── ImageSizeError       it is too small to be a portrait or too large to be decoded safely
├── LayoutMismatchError      two style codes or tables do not describe the same generator
├── NoEffectError            no strength of an edit brings images nearer to its prompt
├── NoRelevantChannelError   no style channel reaches the threshold
├── NotFiniteError           a network's output that its number format does not hold
├── PromptError              two prompts that name no direction
├── TrainingDivergedError    a training ended in numbers that are not finite
└── UnknownModelError        no published model has that name

Wrong arguments (a negative beta, a wrong shape) raise ValueError, as everywhere in Python.
"""


class StyleCLIPError(Exception):
    """Base class of every error raised by this project."""


class ArtifactConflictError(StyleCLIPError):
    """Two artifacts do not belong together, or other content lies in the same place."""


class CheckpointError(StyleCLIPError):
    """A weights file is missing, damaged or of another architecture."""


class FaceError(StyleCLIPError):
    """A face cannot be cut out of a photograph, or put back."""


class LandmarksError(FaceError):
    """Landmarks are not finite pixel coordinates, or span no face."""


class NoFaceError(FaceError):
    """There is no face in a photograph."""


class ImageError(StyleCLIPError):
    """An input image cannot be used."""


class ImageFormatError(StyleCLIPError):
    """A format of image files cannot be written here."""


class ImageDecodeError(ImageError):
    """The bytes are not an image that can be decoded."""


class ImageSizeError(ImageError):
    """The image is too small to be a portrait or too large to be decoded safely."""


class LayoutMismatchError(StyleCLIPError):
    """Two style codes or tables do not describe the same generator."""


class NoEffectError(StyleCLIPError):
    """No strength of an edit brings images nearer to its prompt, or they show it already."""


class NoRelevantChannelError(StyleCLIPError):
    """No style channel reaches the relevance threshold."""


class NotFiniteError(StyleCLIPError):
    """A network gave values that are not finite, most likely as its number format does not reach so far."""


class PromptError(StyleCLIPError):
    """Two prompts name no direction, because CLIP cannot tell them apart."""


class TrainingDivergedError(StyleCLIPError):
    """A training ended in numbers that are not finite."""


class UnknownModelError(StyleCLIPError):
    """No published model has that name."""
