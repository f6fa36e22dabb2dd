"""The releases that `releases.toml` lists."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASES = tomllib.loads((ROOT / "releases.toml").read_text())["release"]
LAST = RELEASES[0]
