"""Real containers: a Docker of the sandbox's own, whose image needs no registry.

    with Docker(folder, sandbox) as docker:
        web = docker.run("python3", "-m", "http.server", "80", cgroup=served, publish=["80/tcp"])
        web.address, web.ports["80/tcp"], web.exec("python3", "-c", "print('inside')")

The image is next to nothing: /usr and the lab's own folder are the host's, read only, under the
same paths. Docker runs as on a real host, bridge and userland proxy by default, in namespaces that
end with it:

    network   the caller's: it gets docker0, 172.17.0.1/16 and fd00:172:17::1/64, and rules of NAT
    mounts    cgroup2 alone at /sys/fs/cgroup, as where there is no version 1; a /run of its own
    cgroups   the sandbox's is the root: what is above cannot be reached
    pids      its first process takes all others with it, however that ends

Containers have no more of a way out than the caller.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec

from lab.cgroup import join_command, members
from lab.sandbox import remove_cgroup
from lab.wait import LabError, until

BRIDGE = "docker0"
BRIDGE_INTERFACE = "172.17.0.1/16"
NETWORK6 = "fd00:172:17::/64"
IMAGE = "lab"
SHARED = (Path("/usr"), Path(__file__).parent)
"""What a container has from the host."""

START_SECONDS = 20.0
CALL_SECONDS = 30.0
END_SECONDS = 5.0

SWITCHES = {
    # Docker would do so too, but then also have all other packets dropped.
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    # A new bridge would ask for a second whether its address is taken, and be mute as long.
    "ipv6/conf/default/accept_dad": "0",
}
"""Files below /proc/sys/net and what they say as long as Docker runs."""

START = """\
set -e
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /etc/docker
exec tini -- dockerd "$@"
"""
"""/run may have sockets of another Docker, and /etc/docker its settings: neither is for us."""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "container": "lab",  # else Docker gives profiles to the AppArmor of the whole machine
}


class _Binding(msgspec.Struct):
    port: str = msgspec.field(name="HostPort")


class _Attachment(msgspec.Struct):
    address: str = msgspec.field(name="IPAddress")
    address6: str = msgspec.field(name="GlobalIPv6Address")


class _Networking(msgspec.Struct):
    attachments: dict[str, _Attachment] = msgspec.field(name="Networks")
    ports: dict[str, list[_Binding] | None] = msgspec.field(name="Ports")


class _Inspected(msgspec.Struct):
    networking: _Networking = msgspec.field(name="NetworkSettings")


class _Created(msgspec.Struct):
    id: str = msgspec.field(name="Id")


class _Executed(msgspec.Struct):
    code: int = msgspec.field(name="ExitCode")


class _Client:
    """Docker's HTTP interface on a unix socket. Errors of all methods: LabError."""

    def __init__(self, path: Path) -> None:
        transport = httpx.HTTPTransport(uds=str(path))
        self._http = httpx.Client(
            transport=transport, base_url="http://docker", timeout=CALL_SECONDS
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> bytes:
        return self._call(self._http.build_request("GET", path))

    def delete(self, path: str) -> None:
        self._call(self._http.build_request("DELETE", path))

    def post(self, path: str, document: Mapping[str, object]) -> bytes:
        return self._call(self._http.build_request("POST", path, json=document))

    def post_tar(self, path: str, tar: bytes) -> None:
        headers = {"Content-Type": "application/x-tar"}
        self._call(self._http.build_request("POST", path, content=tar, headers=headers))

    def _call(self, request: httpx.Request) -> bytes:
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise LabError(f"Docker does not answer: {error!r}") from error
        if response.is_error:
            raise LabError(f"Docker: {request.method} {request.url.path}: {response.text.strip()}")
        return response.content


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs, until `kill` or the end of its `with` block."""

    _client: _Client = field(repr=False)
    id: str
    address: IPv4Address
    address6: IPv6Address
    ports: Mapping[str, int]
    """Of those that were published: `80/tcp` -> the port of all addresses of the host."""
    cgroup: Path
    """Its own: its processes and nobody else's are in it."""

    @property
    def pid(self) -> int:
        """Its first process, as it is numbered here. Errors: LabError when it has ended."""
        if not (found := members(self.cgroup)):
            raise LabError(f"the container has ended: {self.logs()}")
        return min(found)

    def exec(self, *words: str) -> str:
        """What the command `words` prints in there.

        Errors: LabError when it fails, or says nothing for CALL_SECONDS.
        """
        order = {"Cmd": words, "AttachStdout": True, "AttachStderr": True}
        created = self._client.post(f"/containers/{self.id}/exec", order)
        execution = msgspec.json.decode(created, type=_Created).id
        output, errors = _streams(self._client.post(f"/exec/{execution}/start", {}))
        ended = msgspec.json.decode(self._client.get(f"/exec/{execution}/json"), type=_Executed)
        if ended.code:
            raise LabError(f"`{words[0]}` ended with {ended.code}: {errors or output}")
        return output

    def logs(self) -> str:
        """What its first process has printed so far."""
        return "".join(_streams(self._client.get(f"/containers/{self.id}/logs?stdout=1&stderr=1")))

    def kill(self) -> None:
        """End it with SIGKILL and forget it."""
        self._client.delete(f"/containers/{self.id}?force=1&v=1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class Docker:
    """The daemon: started by `__enter__`, gone with all its containers after `__exit__`.

    Args:
        folder: For its socket and its log.
        sandbox: A cgroup, version 2, for Docker's own processes; those of containers are below.
    """

    def __init__(self, folder: Path, sandbox: Path) -> None:
        self._log = folder / "docker.log"
        self._socket = folder / "docker.sock"
        self._sandbox = sandbox
        self._client = _Client(self._socket)
        self._cgroups: list[Path] = []
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        """Errors: LabError with the end of its log."""
        with ExitStack() as ending:
            ending.enter_context(_network())
            ending.callback(self._client.close)
            process = self._launch()
            ending.callback(self._end, process)
            self._wait()
            self._client.post_tar(f"/images/create?fromSrc=-&repo={IMAGE}", _image())
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.close()

    def run(self, *words: str, cgroup: Path, publish: Sequence[str] = ()) -> Container:
        """Start a container whose first process is the command `words`.

        It has a cgroup of its own in `cgroup`, which need not exist and is below the sandbox's.
        `publish` names ports, such as `80/tcp`, that each get one of the host.  Errors: LabError.
        """
        order = {
            "Image": IMAGE,
            "Cmd": words,
            "ExposedPorts": {port: {} for port in publish},
            "HostConfig": {
                "Binds": [f"{path}:{path}:ro" for path in SHARED],
                "CgroupParent": f"/{cgroup.relative_to(self._sandbox)}",
                "PortBindings": {port: [{"HostPort": ""}] for port in publish},
            },
        }
        created = self._client.post("/containers/create", order)
        container_id = msgspec.json.decode(created, type=_Created).id
        self._cgroups.append(cgroup / container_id)
        self._client.post(f"/containers/{container_id}/start", {})
        return self._inspect(container_id, cgroup / container_id)

    def _inspect(self, container_id: str, cgroup: Path) -> Container:
        document = self._client.get(f"/containers/{container_id}/json")
        networking = msgspec.json.decode(document, type=_Inspected).networking
        if not (attachment := networking.attachments["bridge"]).address:
            raise LabError("the container has ended")
        ports = networking.ports.items()
        return Container(
            self._client,
            container_id,
            IPv4Address(attachment.address),
            IPv6Address(attachment.address6),
            {port: int(bindings[0].port) for port, bindings in ports if bindings},
            cgroup,
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        # It stays in the sandbox's cgroup, which is the root of its namespace of cgroups. While
        # processes are in there Docker cannot switch on controllers, and without them the cgroups
        # below may hold processes as well as containers.
        unshare = ["unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child"]
        inner = [*unshare, "--mount-proc", "sh", "-c", START, "docker", *self._options()]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                join_command(self._sandbox, "setpriv", "--pdeathsig", "KILL", *inner),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever started it
            )

    def _options(self) -> list[str]:
        return [
            f"--host=unix://{self._socket}",
            "--data-root=/run/docker-data",
            "--storage-driver=vfs",  # works everywhere, and there is next to nothing to copy
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--bip={BRIDGE_INTERFACE}",
            "--ipv6",
            f"--fixed-cidr-v6={NETWORK6}",
        ]

    def _wait(self) -> None:
        try:
            until("socket of Docker", self._listens, START_SECONDS)
            # It listens at once, and answers when it is ready.
            self._client.get("/_ping")
        except LabError as error:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise LabError(f"Docker did not start, {error}:\n{tail}") from error

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            # Of the processes inside the first one ends last, and then unshare(1) does.
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            children = [int(pid) for pid in inside.read_text(encoding="ascii").split()]
            for pid in children or [process.pid]:
                os.kill(pid, signal.SIGKILL)
            process.wait()
        for cgroup in self._cgroups:
            remove_cgroup(cgroup)


def _image() -> bytes:
    """A root as a tar archive: links into /usr, and a /tmp."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return archive.getvalue()


def _streams(raw: bytes) -> tuple[str, str]:
    """Standard output and standard error out of what Docker sends.

    Shape: frames of stream(1) zero(3) length(4, big-endian) and so many bytes; stream is 1 or 2.
    Source: "Stream format" of the operation ContainerAttach in Docker's API.
    """
    texts = {1: bytearray(), 2: bytearray()}
    while raw:
        end = 8 + int.from_bytes(raw[4:8], "big")
        texts[raw[0]] += raw[8:end]
        raw = raw[end:]
    return texts[1].decode(), texts[2].decode()


# ---- the network around it -----------------------------------------------------------------------
@contextmanager
def _network() -> Iterator[None]:
    """Let packets be forwarded; after Docker's end take away its bridge and its rules."""
    if "-A " in _output("iptables-save"):
        raise RuntimeError("somebody has rules here: run this in deploy/lab/sandbox.py")
    before = {name: _switch(name).read_text(encoding="ascii") for name in SWITCHES}
    for name, value in SWITCHES.items():
        _switch(name).write_text(value, encoding="ascii")
    try:
        yield
    finally:
        _remove_bridge()
        for table in ("nat", "filter"):
            for order in ("--flush", "--delete-chain"):
                _output("iptables", "--table", table, order)
        for name, value in before.items():
            _switch(name).write_text(value, encoding="ascii")


def _switch(name: str) -> Path:
    return Path("/proc/sys/net", name)


def _remove_bridge() -> None:
    if BRIDGE in _output("ip", "-brief", "link"):
        # The kernel takes apart the namespaces of containers, and with them their interfaces.
        until(
            f"{BRIDGE} without interfaces",
            lambda: not _output("ip", "link", "show", "master", BRIDGE),
            END_SECONDS,
        )
        _output("ip", "link", "delete", BRIDGE)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
