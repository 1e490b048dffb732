"""Settings of the agent: command line, MINUTEMAN_<NAME>, TOML file, default, in this order."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from minuteman.errors import ConfigError
from minuteman.names.home import AddressRange
from minuteman.reconcile.kernelstate import Limits

ENV_PREFIX = "MINUTEMAN_"
Network = IPv4Network | IPv6Network


def _items(value: object) -> object:
    """A text is a list with commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _range(value: object) -> AddressRange:
    """A text is `first-last`."""
    return value if isinstance(value, AddressRange) else AddressRange.parse(str(value))


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_items)]
Range = Annotated[AddressRange, NoDecode, BeforeValidator(_range)]
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_items)]

DEFAULT_LIMITS = Limits()
PRIVATE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)


class Settings(BaseSettings):
    """What `minuteman agent` is told. Made by `load`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    zookeeper: str = Field(default="", repr=False)
    """zk://[user:password@]host:port[,host:port][/chroot]"""
    source: Literal["marathon"] = "marathon"
    marathon_root: str = "/marathon"
    """The path in Marathon's `--zk`, below the chroot of `zookeeper`."""
    framework_name: str = "marathon"
    """What Marathon registers as; named VIPs have it in their name."""

    cgroup: AbsolutePath | None = None
    """The processes in it and below are served. None: the root of the cgroup2 mount."""
    cgroup_skip: Paths = ()
    """The processes in these and below are left alone. Relative paths are below the mount."""
    bpffs: AbsolutePath | None = None
    """Where pins live, in a folder `minuteman`. None: where bpffs is mounted."""
    state_dir: AbsolutePath = Path("/var/lib/minuteman")
    api: str = "127.0.0.1:62080"
    """Where REST listens: address:port on the loopback."""
    front_user: str = "nobody"
    """Whom the process with the listener becomes."""

    vip_allow: Networks = PRIVATE
    """The only networks that literal VIPs may be in."""
    named_range: Range = AddressRange.parse("11.0.0.0-11.255.255.255")
    named_range6: Range = AddressRange.parse("fd01:c::-fd01:c::ffff:ffff:ffff:ffff")
    """Where named VIPs live, both ends included."""
    unreachable_route: bool = True
    """Whoever is not served is told at once that there is no way to a named VIP."""

    resync_seconds: Seconds = 300.0
    """Between two whole reads of a source without a reason."""
    audit_seconds: Seconds = 60.0
    """Between two comparisons of the maps with what was written."""
    sweep_seconds: Seconds = 300.0
    """Between two looks for sockets that are gone without the programs seeing it; and for those
    whose backends are gone, which are looked for at once, too."""
    start_timeout_seconds: Seconds = 30.0
    """How long to wait for ZooKeeper when there is nothing to serve."""

    max_vips: int = Field(default=DEFAULT_LIMITS.vips, ge=1)
    max_slots: int = Field(default=DEFAULT_LIMITS.slots, ge=1)
    max_backends: int = Field(default=DEFAULT_LIMITS.backends, ge=2)
    max_conns: int = Field(default=DEFAULT_LIMITS.conns, ge=1)
    """Capacity of the maps. A start with another one makes new maps and fills them from the old."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        "info"
    )

    @staticmethod
    def load(config: Path | None = None, **command_line: object) -> Settings:
        """The settings; of `command_line` by field name, a None was not given.

        Errors: ConfigError, one line that names the setting.
        """
        # Any: the library checks them.
        given: dict[str, Any] = {k: value for k, value in command_line.items() if value is not None}

        class Configured(Settings):  # the library takes the path of the file from the class
            model_config = SettingsConfigDict(toml_file=config)

        try:
            if config is not None and not config.is_file():
                raise ConfigError(f"config: there is no file {config}")
            return Configured(**given)
        except ValidationError as exc:
            raise ConfigError(_first(exc)) from exc
        except (SettingsError, tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"config: {config}: {exc}") from exc

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, the first that has one wins. Called by the library."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def limits(self) -> Limits:
        """Capacity of the maps."""
        return Limits(self.max_vips, self.max_slots, self.max_backends, self.max_conns)


def _first(error: ValidationError) -> str:
    """The first complaint as one line; of a value with credentials, only that it is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(map(str, first["loc"]))
    shown = "" if name == "zookeeper" else f" (it is {first['input']!r})"
    return f"{name}: {first['msg']}{shown}"
