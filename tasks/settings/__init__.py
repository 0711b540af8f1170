"""Parameters of the flows: typed, documented, refused before a run starts if they are wrong.

Each class becomes a form in Prefect's UI. What the core decides stands in the core's settings dataclasses,
with default, bounds and sentence; here such a dataclass becomes a form as it is, and gets the fields that
only a pipeline has.
"""

from __future__ import annotations

from styleclip.tasks.settings.datasets import DataSet as DataSet
from styleclip.tasks.settings.faces import Alignment as Alignment
from styleclip.tasks.settings.faces import FaceSource as FaceSource
from styleclip.tasks.settings.faces import Pasting as Pasting
from styleclip.tasks.settings.nightly import Nightly as Nightly
from styleclip.tasks.settings.saving import Saving as Saving
from styleclip.tasks.settings.settings import Choosing as Choosing
from styleclip.tasks.settings.settings import Comparison as Comparison
from styleclip.tasks.settings.settings import Execution as Execution
from styleclip.tasks.settings.settings import FeatureInversion as FeatureInversion
from styleclip.tasks.settings.settings import Instant as Instant
from styleclip.tasks.settings.settings import Inversion as Inversion
from styleclip.tasks.settings.settings import Judges as Judges
from styleclip.tasks.settings.settings import MapperTraining as MapperTraining
from styleclip.tasks.settings.settings import Models as Models
from styleclip.tasks.settings.settings import Optimization as Optimization
from styleclip.tasks.settings.settings import PivotalTuning as PivotalTuning
from styleclip.tasks.settings.settings import Relevance as Relevance
from styleclip.tasks.settings.settings import Sampling as Sampling
from styleclip.tasks.settings.settings import Settings as Settings
from styleclip.tasks.settings.settings import SettingsError as SettingsError
from styleclip.tasks.settings.settings import describe as describe
from styleclip.tasks.settings.settings import fast_relevance as fast_relevance
from styleclip.tasks.settings.settings import fields_of as fields_of
from styleclip.tasks.settings.settings import preset_values as preset_values
from styleclip.tasks.settings.uris import Clip as Clip
from styleclip.tasks.settings.uris import OptionalUri as OptionalUri
from styleclip.tasks.settings.uris import OrUsual as OrUsual
from styleclip.tasks.settings.uris import Prompt as Prompt
from styleclip.tasks.settings.uris import TemplateSet as TemplateSet
from styleclip.tasks.settings.uris import Uri as Uri
from styleclip.tasks.settings.uris import UriOrNone as UriOrNone
