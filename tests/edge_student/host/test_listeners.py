"""Finding the local processes that listen at the teacher's address."""

import os
import socket
import subprocess
import sys

import pytest

from edge_student.host.listeners import listening_at


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), pytest.param(socket.AF_INET6, "::ffff:127.0.0.1", marks=pytest.mark.needs("ipv6"))],
)
def test_the_process_that_listens_at_the_teacher_s_address_is_found(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        assert listening_at(f"127.0.0.1:{port}") == listening_at(f"localhost:{port}") == {os.getpid()}
        assert listening_at(f"192.0.2.1:{port}") == frozenset()


@pytest.mark.needs("ip", "network-namespaces")
def test_a_teacher_in_another_network_namespace_of_this_machine_is_found() -> None:
    """Containers and the slowed links of the benchmarks use network namespaces."""
    program = "import socket, time\nserver = socket.create_server(('', 7765))\nprint(flush=True)\ntime.sleep(60)"
    inside = 'ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec "$0" -c "$1"'
    command = ["unshare", "--net", "sh", "-c", inside, sys.executable, program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline(), "it listens"
        assert listening_at("192.0.2.1:7765") == {server.pid}
        assert listening_at("192.0.2.1:7766") == listening_at("192.0.2.2:7765") == frozenset()
        server.kill()
