"""The flows and commands that say what a place holds, and prune it."""

from __future__ import annotations

import os
import sys
import time

import pytest

from benchmarks.batches import make_batch
from styleclip.flows.account_storage import account_storage
from styleclip.flows.prune import prune as flow
from styleclip.tasks.keeping.accounts import account
from styleclip.tasks.storage import exists, list_objects
from styleclip_cli import main
from tests.pipeline.test_keeping import DAY, HAT, KEYS, SMILE, batch_of, check_law


@pytest.mark.usefixtures("prefect_server")
def test_the_flows_and_commands_say_the_same_and_delete_only_where_that_is_confirmed(
    tmp_path, capsys, monkeypatch
):
    made = make_batch(str(tmp_path), KEYS[:2], [SMILE])
    other = make_batch(str(tmp_path), KEYS[:2], [HAT])
    old = time.time() - 100 * DAY
    for item in list_objects(str(tmp_path)):
        os.utime(tmp_path / item.key, (old, old))
    os.utime(other.manifest)

    assert account_storage(made.out) == account(made.out, made.workspace)
    said = flow(made.out, older_than="90d")
    assert exists(made.manifest)

    for arguments in (["storage", made.out], ["prune", made.out, "--older-than", "90d", "--yes"]):
        monkeypatch.setattr(sys, "argv", ["styleclip", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.run()
        assert not ended.value.code
    told = capsys.readouterr().out
    assert f"| {batch_of(made)} | " in told
    assert f"Deleted 1 batches ({batch_of(made)}); 1 stay" in told
    assert told.splitlines()[-1].startswith(f"deleted       {said.objects} objects, ")
    assert not exists(made.manifest)
    check_law(other.out)
