"""A machine that is not set up for its store: said at once, with a remedy, and no image's fault."""

import datetime
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import s3fs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from styleclip.tasks.artifacts.outcomes import failure
from styleclip.tasks.storage import StoreError, first_page, read_bytes
from styleclip.tasks.storage.outages import (
    CredentialsError,
    MissingCredentialsError,
    StoreSetupError,
    StoreUnavailableError,
)

SOURCE = "role_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = gone"
SSO = (
    "sso_session = mine\nsso_account_id = 1\nsso_role_name = reader\n"
    "[sso-session mine]\nsso_region = us-east-1\nsso_start_url = https://sso.invalid/start"
)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with a profile of good form, whose store is not there; nobody waits long for it."""
    settings = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_PROFILE": "some", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_EC2_METADATA_DISABLED": "true",
        "STYLECLIP_STORAGE_PATIENCE": "0.2",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "credentials").write_text(
        "[some]\naws_access_key_id = some\naws_secret_access_key = hidden\n[half]\naws_access_key_id = half\n"
    )
    (tmp_path / "config").write_text("")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def refused(kind: type[StoreError], said: str) -> None:
    """Check what listing and reading raise: kind, place and remedy, and that no row is made of it."""
    for work in (first_page, read_bytes):
        with pytest.raises(StoreError) as caught:
            work("s3://bucket/in")
        assert type(caught.value) is kind
        told = str(caught.value)
        assert "s3://bucket/in" in told
        assert said in told
        assert "\n" not in told
        assert "hidden" not in told
        with pytest.raises(kind):
            failure(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:8333"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:port"),
        ("AWS_DEFAULT_REGION", "eu west 1"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "sometimes"),
    ],
)
def test_a_variable_that_says_nothing_usable_is_not_waited_for(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    refused(StoreSetupError, "check AWS_ENDPOINT_URL, the region")


@pytest.mark.parametrize(
    "text",
    ["[profile some\n", "[profile some]\ns3 =\n  addressing_style = any\n", f"[profile role]\n{SOURCE}\n"],
)
def test_nor_is_a_config_file(tmp_path, monkeypatch, text):
    (tmp_path / "config").write_text(text)
    if "role" in text:
        monkeypatch.setenv("AWS_PROFILE", "role")
    refused(StoreSetupError, "the AWS config file")


@pytest.mark.parametrize("options", [{"endpoint": "http://127.0.0.1:9"}, {"client_kwargs": {"verified": 1}}])
def test_nor_are_options_that_nobody_knows(tmp_path, monkeypatch, options):
    (tmp_path / "options.json").write_text(json.dumps({"s3://": options}))
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(tmp_path / "options.json"))
    refused(StoreSetupError, "STYLECLIP_STORAGE_OPTIONS")


@pytest.mark.parametrize("profile", ["half", "none"])
def test_credentials_that_are_not_there_are_not_called_refused(monkeypatch, profile):
    monkeypatch.setenv("AWS_PROFILE", profile)
    refused(MissingCredentialsError, "there are no credentials")


def test_without_any_credentials_it_says_how_a_public_bucket_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_PROFILE")
    (tmp_path / "credentials").write_text("")
    refused(MissingCredentialsError, '{"anon": true} in STYLECLIP_STORAGE_OPTIONS')


def test_a_login_that_has_ended_is_one_of_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "sso")
    (tmp_path / "config").write_text(f"[profile sso]\n{SSO}\n")
    refused(CredentialsError, "renew them")


def test_what_is_set_right_meanwhile_is_taken(monkeypatch):
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_DEFAULT_REGION", "eu west 1")
        refused(StoreSetupError, "the region")
    refused(StoreUnavailableError, "does not answer")


class Denies(BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self) -> None:
        text = b"<Error><Code>InvalidAccessKeyId</Code></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_given: object) -> None:
        pass


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """The address of a store behind TLS, and the file of its certificate, which is of no known CA."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]),
    )
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "certificate").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    with HTTPServer(("127.0.0.1", 0), Denies) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}", folder / "certificate"
        server.shutdown()
        thread.join()


def test_certificates_that_do_not_fit_are_not_waited_for(encrypted, tmp_path, monkeypatch):
    address, certificate = encrypted
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    refused(StoreSetupError, "AWS_CA_BUNDLE")
    (tmp_path / "none").write_text("no certificate")
    for wrong in (tmp_path / "none", tmp_path / "absent"):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(wrong))
        refused(StoreSetupError, "AWS_CA_BUNDLE")

    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    refused(CredentialsError, "renew them")


def test_a_handshake_that_breaks_off_is_asked_for_again(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Denies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.server_port}")
        refused(StoreUnavailableError, "does not answer")
        server.shutdown()
        thread.join()
