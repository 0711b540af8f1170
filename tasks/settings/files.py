"""Lists that people write: YAML or JSON files, read so that nothing in them is passed over."""

from __future__ import annotations

import yaml

from styleclip.tasks.settings.settings import SettingsError


class _Loader(yaml.SafeLoader):
    """YAML's own, but for names that a mapping gives twice: of two values it would take the last."""

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        """Return a mapping that has every name once.

        Raises:
            SettingsError: If it has one twice; the message has its line.
        """
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise SettingsError(f"line {line}: {name!r} is given twice; leave one of them out")
            seen.add(name)
        return node


def read_list(uri: str, name: str) -> list[object]:
    """Read a YAML or JSON list, or the list under ``name`` of a mapping that has nothing else.

    Raises:
        SettingsError: If it is no such list; the message says where.
        StorageError: If it cannot be read.
    """
    from styleclip.tasks.storage import read_bytes  # takes a second, and `styleclip --help` has no use for it

    data = read_bytes(uri)
    try:
        content = yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{uri} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    except SettingsError as error:
        raise SettingsError(f"{uri}, {error}") from error

    # a file may hold the list alone, or say what it is a list of
    entries = content.get(name) if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise SettingsError(f"{uri} must hold a list of {name}, or a mapping with the list under {name!r}")

    others = sorted(str(each) for each in content if each != name) if isinstance(content, dict) else []
    if others:
        raise SettingsError(
            f"{uri} has {', '.join(others)} beside {name!r}, which nothing reads; leave it out"
        )
    return entries
