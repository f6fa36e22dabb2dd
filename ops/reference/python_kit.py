"""Copy what the Python kit shares with the service: `python -m ops.reference.python_kit`.

A sender, a receiver and `fake_els` then use the service's own models, checks and event bodies,
without its servers and drivers.
"""

import re
from pathlib import Path

from ops.output import say

ROOT = Path(__file__).parents[2]
COPIED = (  # none of them needs a server, or a library but pydantic
    "core/catalogue",
    "core/errors",
    "core/events",
    "core/messages",
    "core/model",
    "core/named_batch",
    "core/nesting",
    "core/parsing",
    "core/states",
    "core/tracker",
    "ops/reference/event_bodies",
)
HERE = "els_client._service"
FOLDER = ROOT / "clients/python" / HERE.replace(".", "/")
MADE = "# `make reference` copies this module from {name}.py; change that one.\n"
ABOUT = "# `make reference` copies these modules; change those.\n"


def files() -> dict[str, str]:
    """Return the text of each file, by its path in `FOLDER`."""
    return {"__init__.py": ABOUT, **{f"{Path(name).name}.py": _copy(name) for name in COPIED}}


def _copy(name: str) -> str:
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    return MADE.format(name=name) + re.sub(r"^from core\b", f"from {HERE}", text, flags=re.M)


def main() -> None:
    """Write the copies; remove those of modules that are no longer copied."""
    made = files()
    FOLDER.mkdir(exist_ok=True)
    for stale in {*FOLDER.glob("*.py")} - {FOLDER / name for name in made}:
        stale.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    say(f"{len(made)} files in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
