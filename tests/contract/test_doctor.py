"""The checks of `minuteman doctor`, each against the real thing that it looks at."""

from __future__ import annotations

import errno
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from minuteman.cli import checks
from minuteman.cli.checks import Row
from minuteman.errors import ConfigError, SourceError, UnsupportedKernelError
from minuteman.front import ListenError
from tests.contract.fronts import USER, start


def test_a_check_that_finds_what_it_looks_for() -> None:
    assert checks.look("bpffs", lambda: "/sys/fs/bpf") == Row("bpffs", "ok", "/sys/fs/bpf")


def test_a_check_says_what_to_do() -> None:
    def check() -> str:
        raise UnsupportedKernelError("find bpffs", errno.ENOENT, "mount it")

    row = checks.look("bpffs", check)
    assert (row.finding, row.fatal) == ("missing", True)
    assert row.text.endswith("(mount it)")


def test_what_is_not_needed_is_not_fatal() -> None:
    assert not Row("error of a refused connect()", "missing", "EPERM instead", needed=False).fatal
    assert not Row("ZooKeeper", "unknown", "none was named").fatal


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try the kernel's features")
def test_every_feature_of_the_kernel_is_a_row() -> None:
    rows = list(checks.kernel_features())
    assert len(rows) >= 5
    assert all(row.finding in ("ok", "missing") for row in rows)
    assert all(row.text or row.finding == "ok" for row in rows)


def test_bcc_is_not_looked_for_in_the_folder_that_root_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bcc.py").write_text("__version__ = 'somebody else'")
    monkeypatch.chdir(tmp_path)
    assert "somebody" not in checks.check_bcc()


def test_a_cgroup_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedKernelError, match="No such file or directory"):
        checks.check_cgroup(tmp_path / "nowhere")


def test_a_folder_that_is_no_bpffs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not on a bpffs"):
        checks.check_bpffs(tmp_path)


def test_a_free_port() -> None:
    assert checks.check_api("127.0.0.1:0") == "127.0.0.1:0 is free"


def test_a_port_that_something_else_has() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request).start()
        with pytest.raises(ListenError, match="Address already in use"):
            checks.check_api(f"127.0.0.1:{other.server_port}")


def test_a_port_that_an_agent_has() -> None:
    with start(USER) as front:
        front.await_listening()
        assert checks.check_api(front.address) == f"an agent answers at {front.address}"


def test_a_zookeeper_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(SourceError, match=f"no ZooKeeper at zk://127.0.0.1:{port}"):
        checks.check_zookeeper(f"zk://127.0.0.1:{port}", "/marathon")


def test_a_zookeeper_url_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="must begin with zk://"):
        checks.check_zookeeper("http://127.0.0.1", "/marathon")
