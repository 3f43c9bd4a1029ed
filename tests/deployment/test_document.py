"""docs/federate.md: its blocks are well formed, its commands exist and know their options, and a test runs each."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.recipe import DOCUMENT, blocks

SHELL = {"cd", "export", "mkdir", "printf", "openssl", "ssh-keygen"}
FLOWER = [line for text in blocks().values() for line in text.replace("\\\n", "").splitlines() if re.match("fl(ow|w)", line)]


def test_every_block_has_a_title_and_is_run_by_a_test():
    found = blocks()
    assert len(found) == DOCUMENT.read_text().count("```sh"), "a title is missing, or there twice"
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert [title for title in found if f'"{title}"' not in tests] == []


def test_every_command_is_known():
    lines = [line for text in blocks().values() for line in text.replace("\\\n", "").splitlines()]
    programs = {re.split(r"\s", line.strip())[0] for line in lines}
    assert programs - SHELL == {"flower-superlink", "flower-supernode", "flwr", "python"}


@functools.cache
def help_of(*command):
    """What `command --help` says, without colours and wide enough not to cut an option."""
    program = str(Path(sys.executable).with_name(command[0]))
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    plain["FLWR_TELEMETRY_ENABLED"] = "0"
    done = subprocess.run([program, *command[1:], "--help"], env=os.environ | plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # as are the tests that run the blocks
@pytest.mark.parametrize("line", FLOWER)
def test_flower_knows_every_option(line):
    words = shlex.split(line)
    command = [word for word in words[:3] if re.fullmatch("fl[a-z-]+|run|list|log|stop|supernode|register", word)]
    options = {word for word in words if word.startswith("--")}
    assert {option for option in options if not re.search(rf"{option}\b", help_of(*command))} == set()
