"""What looking at a run's data has fetched, where shards lie under addresses."""

from __future__ import annotations

from pathlib import Path

from onellm.data.streams import is_address
from onellm.train.config import DataConfig
from onellm.train.mixture import shelf_of


def addresses(config: DataConfig) -> list[str]:
    """Paths of a run's data that are fetched."""
    return [path for one in config.datasets for path in one.paths if is_address(path)]


def place_of_fetched(config: DataConfig) -> Path | None:
    """The folder that shards under addresses are fetched into; None where there are none."""
    return shelf_of(config).folder if addresses(config) else None


class Fetched:
    """Files that come onto a run's shelf from now on.

    Args:
        config: where the data are, and the shelf.
    """

    def __init__(self, config: DataConfig) -> None:
        self.folder = shelf_of(config).folder
        self._before = self._files()

    def _files(self) -> dict[Path, int]:
        if not self.folder.is_dir():
            return {}
        files = (path for path in self.folder.iterdir() if not path.name.startswith("."))
        return {path: path.stat().st_size for path in files}

    def line(self) -> str:
        """What has come, in words; empty if nothing has."""
        now = self._files()
        new = [size for path, size in now.items() if path not in self._before]
        if not new:
            return ""
        return (
            f"{len(new)} file(s), {sum(new) / 1e6:,.1f} MB, were fetched for this into "
            f"{self.folder} (data.shelf), where a run on this machine finds them"
        )
