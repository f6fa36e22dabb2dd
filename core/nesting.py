"""How deep JSON is nested: what can be parsed cannot always be handed to another process."""

from typing import Any


def is_deeper(thing: object, levels: int) -> bool:
    """Tell whether objects and lists stand in each other on more levels than these."""
    level: list[Any] = [thing]  # Any: JSON
    for _ in range(levels):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for some in inner for each in some if isinstance(each, dict | list)]
        if not level:
            return False
    return True
