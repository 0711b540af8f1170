#!/usr/bin/env bash
# obstore 0.12.1: keys lose a slash at either end before anything is asked of a store. S3 consoles mark folders by empty
# objects of keys such as "photographs/", which are other objects than "photographs": obstore reads and replaces the latter
# when it is asked for the former, without a word, and a key "/a" is "a".
#
# Seen: as said; no key with such a slash can be read, written or deleted.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q obstore==0.12.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import obstore
from obstore.store import MemoryStore

store = MemoryStore()
obstore.put(store, "photographs", b"a table of contents")
print("photographs/ :", bytes(obstore.get(store, "photographs/").bytes()))
assert bytes(obstore.get(store, "photographs/").bytes()) == b"a table of contents"

obstore.put(store, "photographs/", b"")
print("photographs  :", bytes(obstore.get(store, "photographs").bytes()))
assert bytes(obstore.get(store, "photographs").bytes()) == b""

obstore.put(store, "/a", b"of another key")
listed = sorted(each["path"] for batch in obstore.list(store) for each in batch)
print("listed       :", listed)
assert listed == ["a", "photographs"]
PY
echo "as described"
