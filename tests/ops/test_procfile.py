"""The Procfile, as honcho and `els run` read it."""

import subprocess
import sys

from ops.stack import procfile
from tests.ops.conftest import ROOT


def test_honcho_takes_the_procfile():
    told = subprocess.run(
        [sys.executable, "-m", "honcho", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stderr
    assert list(procfile()) == ["worker", "beat", "ops", "flower"]
