"""Names of runs: what a run does, in one line, without anything secret, whatever its parameters are."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow

from styleclip.flows.explore_channels import Question
from styleclip.flows.inspect_prompts import inspect_prompts
from styleclip.flows.names import _DESCRIBED, LONGEST, listed, name_of, place, run_name
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.settings import Models, Nightly
from styleclip.tasks.settings.edits import Edit

MODELS = Models(generator="s3://models/ffhq.pkl")
EDITS = [Edit(target="white hair"), Edit(target="cap", then=[{"target": "open mouth"}])]
MANIFEST = "s3://results/out/batches/4f2a1b9c04d5e6f7/manifest.parquet"


def named(flow_name: str, **parameters: object) -> str:
    return name_of(_DESCRIBED[flow_name], parameters, flow_name)


@pytest.mark.parametrize(
    ("flow_name", "parameters", "wanted"),
    [
        ("edit-images", {"photos": "s3://photographs/few", "edits": EDITS},
         "edit photographs/few: white hair, cap then open mouth"),
        ("choose-edits", {"photos": "", "edits": EDITS}, "choose strengths: white hair, cap then open mouth"),
        ("choose-edits", {"photos": "/data/a/b", "edits": EDITS[:1]}, "choose strengths on a/b: white hair"),
        ("build-relevance", {"models": MODELS, "add_samples": 0}, "relevance of ffhq.pkl"),
        ("build-relevance", {"models": MODELS, "add_samples": 50}, "relevance of ffhq.pkl, 50 samples more"),
        ("build-relevance", {"models": MODELS, "nightly": Nightly(night="2031-05-17")},
         "relevance of ffhq.pkl, night of 2031-05-17"),
        ("invert-images", {"photos": "/data/in/few"}, "invert in/few"),
        ("sample-styles", {"models": MODELS}, "sample style codes of ffhq.pkl"),
        ("train-mapper", {"targets": ["grey hair", "hat"]}, "train mappers: grey hair, hat"),
        ("align-faces", {"photos": "s3://photographs"}, "cut faces out of photographs"),
        ("paste-faces", {"edited": "s3://results/images/hat"}, "put faces of images/hat back"),
        ("evaluate-edits", {"manifest": MANIFEST}, "score edits of out/4f2a1b9c04d5e6f7"),
        ("score-images", {"images": "s3://b/in", "prompts": [LabelPrompt(prompt="a hat", name="hat")]},
         "score b/in: hat"),
        ("inspect-prompts", {"edits": EDITS[:1]}, "check prompts: white hair"),
        ("explore-channels", {"models": MODELS, "question": Question(channel="b16.conv1.42")},
         "explore b16.conv1.42 of ffhq.pkl"),
        ("report-batch", {"manifest": MANIFEST}, "page of out/4f2a1b9c04d5e6f7"),
        ("report-partial", {"out": "s3://results/out"}, "partial pages of results/out"),
        ("account-storage", {"out": "s3://results"}, "account of results"),
        ("prune", {"out": "s3://results", "older_than": "90d", "confirmed": False},
         "dry run of pruning results: older than 90d"),
        ("prune", {"out": "s3://results", "keep_last": 3, "confirmed": True},
         "prune results: all but the newest 3"),
    ],
)  # fmt: skip
def test_a_run_is_called_by_what_it_does(flow_name, parameters, wanted):
    assert named(flow_name, **parameters) == wanted


def test_of_many_edits_some_are_named_and_the_others_counted():
    edits = [Edit(target=f"a rather long target, number {number}") for number in range(9)]
    name = named("edit-images", photos="s3://photographs/few", edits=edits)
    assert name.startswith("edit photographs/few: a rather long target, number 0, a rather")
    assert name.endswith(" and 7 more")
    assert len(name) <= LONGEST


@given(
    begin=st.text(max_size=60).map(str.strip),
    items=st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=12),
)
def test_a_name_is_one_line_and_short(begin, items):
    name = name_of(lambda _: listed(begin, items), {}, "flow")
    assert len(name) <= LONGEST
    assert "\n" not in name
    assert all(character.isprintable() for character in name)


SECRET = "canary"
SECRETS = [
    f"https://user:{SECRET}@host/in/few", f"s3://KEY:{SECRET}@bucket/in",
    f"https://host/in/few?X-Amz-Signature={SECRET}", f"https://account.blob.core.windows.net/in?sig={SECRET}",
]  # fmt: skip
ODD = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(SECRETS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "target"]), inner),
    max_leaves=4,
)
KNOWN = ["photos", "images", "out", "edits", "models", "manifest", "edited", "prompts", "question"]


@pytest.mark.parametrize("flow_name", _DESCRIBED)
@given(parameters=st.dictionaries(st.sampled_from(KNOWN), ODD))
def test_no_parameter_fails_a_name_and_no_secret_is_in_one(flow_name, parameters):
    assert SECRET not in named(flow_name, **parameters)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_place_has_no_secret(uri):
    assert SECRET not in place(uri)


def test_prefect_asks_for_the_name_of_every_flow(prefect_server):
    @flow(flow_run_name=run_name("inspect-prompts"))
    def inspect_prompts_like(edits: list[Edit]) -> str:
        from prefect import runtime

        return str(runtime.flow_run.name)

    assert inspect_prompts_like(EDITS) == "check prompts: white hair, cap then open mouth"
    assert callable(inspect_prompts.flow_run_name)


def test_a_night_is_that_of_the_run_s_due_time(monkeypatch):
    from prefect import runtime

    monkeypatch.setattr(
        runtime.flow_run, "scheduled_start_time", datetime(2031, 5, 16, 23, 30, tzinfo=UTC), raising=False
    )
    assert named("build-relevance", models=MODELS, nightly=Nightly()).endswith("night of 2031-05-17")
