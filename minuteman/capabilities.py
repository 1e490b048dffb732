"""What the agent must be allowed to do."""

from __future__ import annotations

from pathlib import Path

# include/uapi/linux/capability.h
NEEDED = {
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
}


def missing() -> list[str]:
    """The needed capabilities that this process does not have. Source: /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return [name for name, bit in NEEDED.items() if not effective >> bit & 1]
