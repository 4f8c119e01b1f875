"""Addresses that no Ray can have are reported at once."""

import pytest

from proav.errors import UserError
from proav.on_ray.resources import check_address


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("10.0.0..1:6379", "no Ray answers at RAY_ADDRESS=10.0.0..1:6379 .*name the head's address and port"),
        ("10.0.0.1:\N{SUPERSCRIPT TWO}", "expected the head's address and port"),
        ("127.0.0.1:99999", "no Ray answers at RAY_ADDRESS=127.0.0.1:99999"),
    ],
)
def test_what_is_no_name_of_a_host_or_number_of_a_port_is_reported(address, said):
    with pytest.raises(UserError, match=said):
        check_address(address)
