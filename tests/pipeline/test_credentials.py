"""Credentials are refused in every field that takes a place, in every form that a URI can hold them in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.utilities.schema_tools.validation import validate

from styleclip.flows.deployments import DeployError, deploy
from styleclip.flows.forms import flow_of, form_of
from styleclip.tasks.storage import holds_credentials

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
ENTRYPOINTS = sorted({each["entrypoint"] for each in CONTENT["deployments"]})
SECRET = "canary"
HOLDING = {
    "user and password": f"https://user:{SECRET}@host/in",
    "a token as user": f"https://{SECRET}@host/in",
    "keys of S3": f"s3://AKIA:{SECRET}@bucket/in",
    "a key of S3": f"S3A://{SECRET}@bucket/in",
    "behind a cache": f"simplecache::s3://AKIA:{SECRET}@bucket/in",
    "a signed link of S3": f"https://b.s3.amazonaws.com/in?X-Amz-Date=1&X-Amz-Signature={SECRET}",
    "a session of S3": f"https://b.s3.amazonaws.com/in?x-amz-security-token={SECRET}",
    "an old signed link": f"https://b.s3.amazonaws.com/in?AWSAccessKeyId=A&Signature={SECRET}",
    "a signed link of Google": f"https://storage.googleapis.com/b/in?X-Goog-Signature={SECRET}",
    "a SAS token": f"https://account.blob.core.windows.net/in?sv=2031&sig={SECRET}",
    "a connection string": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}",
    "a token": f"https://host/in?access_token={SECRET}",
    "a fragment": f"https://host/in#token={SECRET}",
}
HARMLESS = (
    "s3://bucket/in", "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/in", "/data/a=b/in", "photos/key=1/x",
    "abfs://container@account.dfs.core.windows.net/in", "s3://bucket/what?/signature", "https://host/in?page=2",
)  # fmt: skip


def places_in(schema: dict, definitions: dict, path: tuple[str | int, ...] = ()) -> Iterator[tuple]:
    """Yield the path of every field of a form whose description says that it takes a URI."""
    schema = {**definitions.get(schema.get("$ref", "").rpartition("/")[2], {}), **schema}
    kinds = [schema, *schema.get("anyOf", ()), *schema.get("allOf", ())]
    if "URI" in schema.get("description", "") and any(kind.get("type") == "string" for kind in kinds):
        yield path
    for kind in kinds[1:]:
        yield from places_in({"description": schema.get("description", "")} | kind, definitions, path)
    for name, field in schema.get("properties", {}).items():
        yield from places_in(field, definitions, (*path, name))
    if isinstance(schema.get("items"), dict):
        inherited = {"description": schema.get("description", "")} | schema["items"]
        yield from places_in(inherited, definitions, (*path, 0))


FORMS = {entrypoint: form_of(flow_of(entrypoint)) for entrypoint in ENTRYPOINTS}
AT_RUN_TIME = ("user and password", "a SAS token", "a connection string")  # of the server's, one of each kind


def fields(entrypoint: str) -> list[tuple]:
    form = FORMS[entrypoint]
    return sorted(set(places_in(form, form.get("definitions", {}))), key=str)


FIELDS = [(entrypoint, path) for entrypoint in ENTRYPOINTS for path in fields(entrypoint)]


def given(path: tuple, value: str) -> object:
    """Return parameters in which the field at a path holds a value."""
    if not path:
        return value
    inner = given(path[1:], value)
    return [inner] if path[0] == 0 else {path[0]: inner}


def test_the_walk_finds_what_takes_places():
    found = {(entrypoint.partition(":")[2], path) for entrypoint, path in FIELDS}
    assert {
        ("edit_images", ("photos",)), ("edit_images", ("models", "clip")), ("edit_images", ("table",)),
        ("edit_images", ("edits", 0, "advanced", "mapper")), ("evaluate_edits", ("judges", "identity")),
        ("edit_images", ("edits", 0, "advanced", "then", 0, "advanced", "mapper")),
        ("report_batch", ("evaluations", 0)), ("report_batch", ("choices", 0)), ("score_images", ("labels",)),
        ("train_mapper", ("training", "latents")), ("align_faces", ("source", "detector")),
        ("build_relevance", ("last_table",)), ("prune", ("out",)), ("account_storage", ("workspace",)),
    } <= found  # fmt: skip
    assert len(FIELDS) > 70


@pytest.mark.parametrize(("entrypoint", "path"), FIELDS, ids=lambda each: str(each)[-60:])
def test_no_field_takes_credentials_and_a_run_does_not_repeat_them(entrypoint, path):
    flow, form = flow_of(entrypoint), FORMS[entrypoint]
    for how, uri in HOLDING.items():
        parameters = given(path, uri)
        assert validate(parameters, form, ignore_required=True), f"the server takes {how}"
        if how not in AT_RUN_TIME:
            continue
        required = {name: None for name in form.get("required", ()) if name not in parameters}
        with pytest.raises(ParameterTypeError, match="the URI holds credentials") as refused:
            flow.validate_parameters(required | parameters)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("uri", HARMLESS)
def test_what_only_looks_alike_is_taken(uri):
    assert not holds_credentials(uri)


@pytest.mark.parametrize("how", HOLDING)
def test_a_secret_is_deployed_nowhere(tmp_path, prefect_server, how):
    nightly, *_ = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    nightly["parameters"]["workspace"] = "{{ $PLACE }}"
    nightly["schedules"][0]["parameters"] = {"workspace": HOLDING[how]}
    pool = {"name": "p", "job_variables": {"env": {"AWS_SECRET_ACCESS_KEY": SECRET, "FROM": HOLDING[how]}}}
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [nightly | {"work_pool": pool}]}))
    with pytest.raises(DeployError) as refused:
        deploy(file, {"PLACE": HOLDING[how]})
    said = str(refused.value)
    assert SECRET not in said
    assert "nothing was deployed" in said
    for place in (
        "parameters.workspace", "schedules.0.parameters.workspace", "work_pool.job_variables.env.FROM",
        "work_pool.job_variables.env.AWS_SECRET_ACCESS_KEY",
    ):  # fmt: skip
        assert f"holds credentials in {place}" in said


def test_a_secret_block_may_be_named_where_a_secret_may_not_stand(tmp_path):
    from styleclip.flows.deployments import _tells

    pool = {"job_variables": {"env": {"AWS_SECRET_ACCESS_KEY": "{{ prefect.blocks.secret.styleclip-s3 }}"}}}
    (deployment, *_) = CONTENT["deployments"]
    assert list(_tells(deployment | {"work_pool": pool}, {})) == []
