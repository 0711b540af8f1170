#!/usr/bin/env bash
# obstore 0.12.1: S3Store is built from arguments and, for what they leave open, from variables of the environment. Two of these
# count although an argument says otherwise: AWS_ENDPOINT_URL_S3 is stronger than `endpoint`, and to keys that are given
# AWS_SESSION_TOKEN is added, which then belongs to other keys. Somebody who has both for another store, and names this one in
# the program, sends requests there, or signs them with a token that is refused. The argument counts again if it is given
# as config={"aws_endpoint_url_s3": ...}; a token is kept out by credentials that come from a function.
#
# Seen, with two servers on loopback: the one of the environment is asked, not the one of `endpoint`; the request has the
# environment's token; given in the other ways, the right server is asked, without a token.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q obstore==0.12.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
from obstore.store import S3Store

asked = []


def server(name):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((name, self.headers.get("x-amz-security-token")))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{running.server_port}"


named, elsewhere = server("named in the program"), server("of the environment")
os.environ.update(AWS_ENDPOINT_URL_S3=elsewhere, AWS_SESSION_TOKEN="another-login")
shared = {"region": "us-east-1", "client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
keys = {"access_key_id": "mine", "secret_access_key": "secret"}


def ask(**given):
    try:
        obstore.get(S3Store("bucket", **shared, **given), "key")
    except FileNotFoundError:
        pass
    print(asked[-1])
    return asked[-1]


assert ask(endpoint=named, **keys) == ("of the environment", "another-login")
right = {"endpoint": named, "config": {"aws_endpoint_url_s3": named}}
assert ask(**right, **keys) == ("named in the program", "another-login")
mine = keys | {"token": None, "expires_at": None}
assert ask(**right, credential_provider=lambda: mine) == ("named in the program", None)
PY
echo "as described"
