"""The command line in this process, and good raw files of every source to spoil."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import __main__ as door
from tests.data_prep.spoiled import SOURCES

Said = tuple[int, list[str], list[str]]
"""Exit code, lines on standard error, lines on standard output."""


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Said]:
    """Call `python -m data_prep ARGUMENTS` in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr("sys.argv", ["data_prep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            door.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.err.splitlines(), said.out.splitlines()

    return call


@pytest.fixture
def prepare(command) -> Callable[..., Said]:
    """Prepare a source with the options that fit its small raw files."""

    def call(source: str, folder: Path, out: Path, *more: Any) -> Said:
        return command(source, "--input", folder, "--out", out, *SOURCES[source].options, *more)

    return call
