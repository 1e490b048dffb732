"""Values as a person reads them."""

from __future__ import annotations

from itertools import accumulate

from minuteman.model import VIP_DOMAIN

SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
AGES = ((86_400, "d"), (3_600, "h"), (60, "m"))


def host_port(address: str, port: int) -> str:
    """IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def short(vip: str) -> str:
    """A `host:port` without the domain that all names have: as short as it can be asked for."""
    return vip.replace(f".{VIP_DOMAIN}:", ":")


def connect_time(log2_us: tuple[int, ...], quantile: float) -> str:
    """Upper bound of the bucket in which `quantile` of the connects lies, `<64us`."""
    total = sum(log2_us)
    if not total:
        return ""
    counts = enumerate(accumulate(log2_us))
    bucket = next(bucket for bucket, count in counts if count >= quantile * total)
    if bucket == len(log2_us) - 1:
        return f">={duration(2 ** (bucket - 1))}"
    return f"<{duration(2**bucket)}"


def duration(microseconds: int) -> str:
    """`64us`, `1.5ms`, `2.1s`."""
    if microseconds < 1_000:
        return f"{microseconds}us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.1f}ms"
    return f"{microseconds / 1_000_000:.1f}s"


def age(seconds: float) -> str:
    """Whole ones of the largest unit of which there is one: `12s`, `5m`, `3h`, `2d`."""
    for size, unit in AGES:
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{int(seconds)}s"


def size(count: float) -> str:
    """Of so many bytes, in powers of 1,000: `812B`, `1.5kB`."""
    if count < 999.5:
        return f"{count:.0f}B"
    exponent = 0
    while count >= 999.95 and exponent < len(SIZES) - 1:
        count /= 1_000
        exponent += 1
    return f"{count:.1f}{SIZES[exponent]}"


def rate(per_second: float) -> str:
    """With one digit after the point where it is small, `0.5`; `0` for nothing."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:.0f}"


def printable(text: str) -> str:
    """`text` of anybody's, such as the name of a process, with nothing that steers a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
