"""Which network interface training workers take."""

import os

import pytest

from proav.train.on_ray.backend import VARIABLE, choose_interface, interface_of


def test_the_interface_is_the_one_that_holds_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None  # an address for documentation: no machine has it


def test_a_node_with_an_interface_of_its_own_choice_keeps_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, "ib0")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    choose_interface()
    assert os.environ[VARIABLE] == "ib0"


@pytest.mark.ray
def test_workers_take_the_interface_of_their_nodes_address(ray_local):
    @ray_local.remote(num_cpus=0)
    def chosen():
        os.environ.pop(VARIABLE, None)
        choose_interface()
        return os.environ[VARIABLE], interface_of(ray_local.util.get_node_ip_address())

    name, expected = ray_local.get(chosen.remote())
    assert name == expected
