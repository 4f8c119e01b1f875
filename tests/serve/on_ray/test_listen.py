"""Where nothing can listen: the message advises what helps."""

import socket

import pytest

from proav.errors import UserError
from proav.serve.on_ray.listen import _check_free


def test_another_port_is_advised_if_the_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot listen on 127.0.0.1:{port} \(.*:app port=\d+$"
        ) as error:
            _check_free("127.0.0.1", port)
        assert int(str(error.value).rpartition("=")[2]) in range(1024, 65536)
    _check_free("127.0.0.1", port)


def test_the_port_after_the_last_is_not_advised():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 65535))
        taken.listen()
        with pytest.raises(UserError, match="app port=8000$"):
            _check_free("127.0.0.1", 65535)


@pytest.mark.parametrize("host", ["my..host", "nowhere.invalid", "192.0.2.1"])
def test_another_host_is_advised_if_the_host_is_not_this_machine(host):
    with pytest.raises(UserError, match=f"cannot listen on {host}:8000 .*:app host=127.0.0.1 .*host=0.0.0.0"):
        _check_free(host, 8000)
