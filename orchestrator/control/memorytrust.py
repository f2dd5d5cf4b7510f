"""Whether the next attempt may start from the agents' memory. Plan half."""


class MemoryTrust:
    """Given until two attempts in a row find a snapshot damaged; after the first, the one before it serves."""

    def __init__(self) -> None:
        self.is_given = True
        self._rejecting_attempt: int | None = None
        """The first since a step was done that found a snapshot damaged."""

    def rejected(self, attempt: int, *, is_emptied: bool) -> None:
        """A rank of `attempt` was given a damaged snapshot; `is_emptied`: its agent will not give that one again."""
        is_first = self._rejecting_attempt in (None, attempt)
        self.is_given &= is_first and is_emptied
        self._rejecting_attempt = attempt

    def stepped(self) -> None:
        """An attempt has done its first step: what it started from was sound, and newer snapshots follow."""
        self.is_given, self._rejecting_attempt = True, None
