"""Work that waits where a test must see it half done, so that no test has to be quicker than a sampler."""

import threading


class Halt:
    """Where calls in threads wait until it is ended, at the latest at the end of its block.

    arrived: the names of the functions that have come here.
    """

    def __init__(self):
        self.arrived, self._ended = [], threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self._ended.set()

    def wait(self, name):
        self.arrived.append(name)
        assert self._ended.wait(90), f"{name} waited for too long"  # longer than the tests look

    def before(self, act):
        """A function that waits here, and then does what `act` does."""

        def halted(*words, **named):
            self.wait(act.__name__)
            return act(*words, **named)

        return halted

    def at_step(self, step, sampler, monkeypatch):
        """Lets all batches of a sampler wait here when they have made this step.

        Returns a list that gets every step that they make.
        """
        sample_batch, steps = sampler._sample_batch, []

        def halted(requests, total, tell):
            def told(done, total):
                tell(done, total)
                steps.append(done)
                if done == step:
                    self.wait("sample")

            return sample_batch(requests, total, told)

        monkeypatch.setattr(sampler, "_sample_batch", halted)
        return steps
