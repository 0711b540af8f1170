"""The core stands alone: it imports nothing of the layers above, and works where they are not installed."""

import subprocess
import sys

import pytest

PROBE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib, pkgutil, styleclip_core
for module in pkgutil.walk_packages(styleclip_core.__path__, "styleclip_core."):
    importlib.import_module(module.name)
"""
ABOVE = ("prefect", "fsspec", "s3fs", "pandas", "pyarrow", "tasks", "flows", "data", "clip")


def _import_without(*absent: str) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(absent=set(absent))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_core_imports_without_prefect_storage_or_clip():
    result = _import_without(*ABOVE)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("needed", ["torch", "safetensors"])
def test_the_probe_can_fail(needed):
    result = _import_without(needed)
    assert result.returncode != 0
    assert f"ModuleNotFoundError: {needed}" in result.stderr


def test_public_names_exist():
    import styleclip_core

    assert all(hasattr(styleclip_core, name) for name in styleclip_core.__all__)
