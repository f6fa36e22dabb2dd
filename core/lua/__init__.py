"""The Lua scripts that Redis runs: each says its keys, its arguments and its result."""

from pathlib import Path


def script(name: str) -> str:
    return (Path(__file__).parent / f"{name}.lua").read_text()
