"""`minuteman agent`, the control process, and `minuteman detach`, which removes what it left."""

from __future__ import annotations

from typing import Annotated

import typer

from minuteman.cli.options import (
    Api,
    Bpffs,
    Cgroup,
    Config,
    MarathonRoot,
    StateDir,
    Zookeeper,
    setting,
)

PRIVATE = "RFC 1918, 100.64.0.0/10, fc00::/7"


def agent(
    context: typer.Context,
    config: Config = None,
    zookeeper: Zookeeper = None,
    source: Annotated[str | None, setting("NAME", "Where tasks are learnt.", "marathon")] = None,
    marathon_root: MarathonRoot = None,
    framework_name: Annotated[
        str | None, setting("NAME", "What Marathon registers as; in named VIPs.", "marathon")
    ] = None,
    cgroup: Cgroup = None,
    cgroup_skip: Annotated[
        str | None,
        setting(
            "PATHS",
            "Leave the processes in these cgroups and below alone, with commas between; relative "
            "paths are below the mount of cgroup v2.",
            "none",
        ),
    ] = None,
    bpffs: Bpffs = None,
    state_dir: StateDir = None,
    api: Api = None,
    front_user: Annotated[
        str | None, setting("USER", "Whom the process that listens becomes.", "nobody")
    ] = None,
    vip_allow: Annotated[
        str | None,
        setting("NETWORKS", "Where literal VIPs may be, with commas between.", PRIVATE),
    ] = None,
    named_range: Annotated[
        str | None,
        setting("FIRST-LAST", "IPv4 addresses of named VIPs.", "11.0.0.0-11.255.255.255"),
    ] = None,
    named_range6: Annotated[
        str | None,
        setting("FIRST-LAST", "The same for IPv6.", "fd01:c::-fd01:c::ffff:ffff:ffff:ffff"),
    ] = None,
    unreachable_route: Annotated[
        bool | None,
        setting(
            "",
            "Have a route tell who is not served that there is no way to named VIPs.",
            "True",
        ),
    ] = None,
    resync_seconds: Annotated[
        float | None, setting("SECONDS", "Between two whole reads without a reason.", "300")
    ] = None,
    audit_seconds: Annotated[
        float | None, setting("SECONDS", "Between two checks of the kernel's maps.", "60")
    ] = None,
    sweep_seconds: Annotated[
        float | None, setting("SECONDS", "Between two looks for sockets that are gone.", "300")
    ] = None,
    start_timeout_seconds: Annotated[
        float | None,
        setting("SECONDS", "Wait for ZooKeeper with nothing to serve.", "30"),
    ] = None,
    max_vips: Annotated[
        int | None, setting("NUMBER", "Capacity of the maps: VIPs.", "65536")
    ] = None,
    max_slots: Annotated[
        int | None, setting("NUMBER", "Capacity: shares of backends.", "524288")
    ] = None,
    max_backends: Annotated[int | None, setting("NUMBER", "Capacity: backends.", "131072")] = None,
    max_conns: Annotated[
        int | None, setting("NUMBER", "Capacity: connections that are counted.", "131072")
    ] = None,
    log_level: Annotated[
        str | None, setting("LEVEL", "debug, info, warning or error.", "info")
    ] = None,
    detach_all: Annotated[
        bool,
        typer.Option(
            "--detach-all", help="Remove all that is ours from the kernel instead, and end."
        ),
    ] = False,
) -> None:
    """Run the agent: keep this host's VIPs as the cluster wants them.

    It ends at SIGTERM or SIGINT; connections go on, and VIPs too, as they are then.

    Each option can also be the variable MINUTEMAN_<NAME>, or a line of the TOML file. The command
    line goes before the variable, and that before the file.
    """
    from minuteman import agent as control_process  # here: see minuteman.cli
    from minuteman.settings import Settings

    given = {name: value for name, value in context.params.items() if name in Settings.model_fields}
    settings = Settings.load(config, **given)
    if detach_all:
        control_process.detach_all(settings)
    else:
        raise typer.Exit(control_process.run(settings))


def detach(config: Config = None, bpffs: Bpffs = None, state_dir: StateDir = None) -> None:
    """Remove all that is ours from the kernel: VIPs stop working.

    The same as `minuteman agent --detach-all`. An agent that runs has to be stopped first.
    """
    from minuteman import agent as control_process  # here: see minuteman.cli
    from minuteman.settings import Settings

    control_process.detach_all(Settings.load(config, bpffs=bpffs, state_dir=state_dir))
