"""A process with this folder on PYTHONPATH has a wall clock that is wrong by what a file says."""

import datetime
import os
import time
from pathlib import Path

OFFSET_S = Path(os.environ["TEST_CLOCK"])
of_the_host = time.time


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=float(OFFSET_S.read_text()))


time.time = lambda: of_the_host() + float(OFFSET_S.read_text())
datetime.datetime = Datetime
