"""What the driver and the workers of one training job tell each other while Ray Train runs them.

This file is apart because the actor's process imports it. Without PyTorch and Ray Train that takes a second.
"""

import ray
from ray.actor import ActorHandle

from proav.errors import UserError


@ray.remote
class Mailbox:
    """Carries a UserError to the driver, past Ray's retries, and the request to stop to the workers.

    turn: the turn to start (`turn.py`); it ends at a worker's first report, since all workers have then made
        steps.
    """

    def __init__(self, turn: ActorHandle | None) -> None:
        self.turn = turn
        self.errors: dict[int, UserError] = {}
        self.is_stopping = self.has_begun = False

    def has_room(self) -> None:
        """Ends the turn; called by a worker that has its batches, since all workers then have theirs."""
        turn, self.turn = self.turn, None
        if turn is not None:
            ray.kill(turn)

    def stop(self) -> bool:
        """Asks the workers to stop; returns whether one of them has begun its steps."""
        self.is_stopping = True
        return self.has_begun

    def begin(self) -> bool:
        """Called by a worker that begins its steps; returns whether it is asked to stop."""
        self.has_begun = True
        return self.is_stopping

    def stopping(self) -> bool:
        return self.is_stopping

    def post(self, rank: int, error: UserError) -> int:
        self.errors[rank] = error
        return len(self.errors)

    def count(self) -> int:
        return len(self.errors)

    def mistake(self) -> UserError | None:
        return self.errors[min(self.errors)] if self.errors else None
