"""Every error that the project raises on purpose.

    MinutemanError
    ├── ModelError (ValueError)     bad input: names the field and the value; REST answers 422
    ├── ConfigError                 a setting that cannot work; the agent does not start
    ├── PrivilegeError              this process may not do what the agent has to
    ├── RunningError                another agent runs with the same state folder
    ├── SourceError                 out of reach: tried again; REST answers 503
    └── DataplaneError              a kernel operation failed: operation, errno; REST answers 503
        ├── LayoutError             what is pinned is not what this version wrote
        └── UnsupportedKernelError  the kernel, or what surrounds it, lacks something: at start only

Adapters translate what their library raises at once, with the cause chained. The loop catches
`SourceError` and `DataplaneError`; anything else ends the process.
"""

from __future__ import annotations

import os


class MinutemanError(Exception):
    """Base of all. `exit_code` is what a command returns for it, from sysexits.h."""

    exit_code = os.EX_SOFTWARE


class ModelError(MinutemanError, ValueError):
    """Input that has no meaning here."""

    exit_code = os.EX_DATAERR

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field} {value!r}: {reason}")
        self.field = field
        self.value = value
        self.reason = reason


class ConfigError(MinutemanError):
    """A setting that cannot work, said in one line that tells what to do."""

    exit_code = os.EX_CONFIG


class PrivilegeError(MinutemanError):
    """This process may not do what the agent has to."""

    exit_code = os.EX_NOPERM


class RunningError(MinutemanError):
    """Another agent runs with the same state folder."""

    exit_code = os.EX_TEMPFAIL


class SourceError(MinutemanError):
    """A source of tasks is out of reach."""

    exit_code = os.EX_UNAVAILABLE


class DataplaneError(MinutemanError):
    """The kernel did not do what it was asked."""

    exit_code = os.EX_OSERR

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        what = os.strerror(errno) if errno else detail or "failed"
        super().__init__(
            f"{operation}: {what} ({detail})" if errno and detail else f"{operation}: {what}"
        )
        self.operation = operation
        self.errno = errno


class LayoutError(DataplaneError):
    """A pinned map or program differs from what this version of the project expects."""


class UnsupportedKernelError(DataplaneError):
    """Something that the programs need is missing; the message says what to do about it."""
