"""Parameters of the flows: typed, documented, refused before a run starts if they are wrong.

Each class becomes a form in Prefect's UI. What the core decides stands in the core's settings dataclasses,
with default, bounds and sentence; here such a dataclass becomes a form as it is, and gets the fields that
only a pipeline has.
"""

from __future__ import annotations

from tasks.settings.datasets import DataSet as DataSet
from tasks.settings.saving import Saving as Saving
from tasks.settings.settings import Alignment as Alignment
from tasks.settings.settings import Choosing as Choosing
from tasks.settings.settings import Comparison as Comparison
from tasks.settings.settings import Execution as Execution
from tasks.settings.settings import FaceSource as FaceSource
from tasks.settings.settings import Instant as Instant
from tasks.settings.settings import Inversion as Inversion
from tasks.settings.settings import Judges as Judges
from tasks.settings.settings import MapperTraining as MapperTraining
from tasks.settings.settings import Models as Models
from tasks.settings.settings import Nightly as Nightly
from tasks.settings.settings import Optimization as Optimization
from tasks.settings.settings import Pasting as Pasting
from tasks.settings.settings import PivotalTuning as PivotalTuning
from tasks.settings.settings import Relevance as Relevance
from tasks.settings.settings import Sampling as Sampling
from tasks.settings.settings import Settings as Settings
from tasks.settings.settings import SettingsError as SettingsError
from tasks.settings.settings import describe as describe
from tasks.settings.settings import fast_relevance as fast_relevance
from tasks.settings.settings import fields_of as fields_of
from tasks.settings.settings import preset_values as preset_values
from tasks.settings.uris import Clip as Clip
from tasks.settings.uris import OptionalUri as OptionalUri
from tasks.settings.uris import OrUsual as OrUsual
from tasks.settings.uris import Prompt as Prompt
from tasks.settings.uris import TemplateSet as TemplateSet
from tasks.settings.uris import Uri as Uri
from tasks.settings.uris import UriOrNone as UriOrNone
