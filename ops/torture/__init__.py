"""Torture: random faults against a private stack under load; then every promise is checked.

Processes are killed, connections cut, slowed and swallowed, Redis flushed, and servers that are up
refuse. The choices follow from the seed; their timing is the machine's.
"""

from ops.torture.faults import all_faults
from ops.torture.report import Report, show
from ops.torture.session import Session, broker_kind, torture

__all__ = ["Report", "Session", "all_faults", "broker_kind", "show", "torture"]
