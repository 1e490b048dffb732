"""DNS normalisation of what users write: the successor's rules, so that names stay what they were.

Source of the rules: `domain_frag/1` and `label/1` of mesos_state.erl, dcos-net.
"""

from __future__ import annotations

import string

LABEL_OCTETS = 63
"""Longest label of a DNS name (RFC 1035 2.3.4)."""
NAME_OCTETS = 253
"""Longest DNS name as text, without the final dot."""

_UPPER = string.ascii_uppercase.encode() + b"_"
_LOWER = string.ascii_lowercase.encode() + b"-"
_DIGITS = string.digits.encode()
_FOLD = bytes.maketrans(_UPPER, _LOWER)
_DELETE = bytes(set(range(256)).difference(_UPPER, _LOWER, _DIGITS))


def label(text: str) -> str:
    """`text` as one DNS label: a-z, 0-9 and inner hyphens, at most 63; empty if nothing is left.

    Letters are folded to lower case, `_` becomes `-`, every other byte is deleted. Where 63
    characters are full, hyphens at the end make room again, for letters and digits only.
    """
    kept = text.encode(errors="ignore").translate(_FOLD, _DELETE).decode("ascii").lstrip("-")
    head = kept[:LABEL_OCTETS].rstrip("-")
    tail = kept[LABEL_OCTETS:].replace("-", "")
    return (head + tail)[:LABEL_OCTETS]


def domain_frag(text: str) -> str:
    """`text` as dotted DNS labels; those that normalise to nothing are left out."""
    return ".".join(filter(None, map(label, text.split("."))))
