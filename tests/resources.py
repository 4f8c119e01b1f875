"""What the Ray of the tests has to spare."""

import time


def wait_until_free(seconds: float = 20.0) -> None:
    """Waits until all resources of Ray are free; Ray reports freed ones with a delay.

    Object memory is left out: other tests have used this Ray and may still hold objects.
    """
    import ray

    def taken() -> dict[str, float]:
        free = ray.available_resources()
        return {
            kind: most - free.get(kind, 0)
            for kind, most in ray.cluster_resources().items()
            if kind != "object_store_memory"
        }

    deadline = time.monotonic() + seconds
    while any(taken().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(taken().values()), taken()
