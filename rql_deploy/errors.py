"""Errors that speak to the user, and the hint that a misspelt word gets.

Each error has a `kind` for programs and may have a `hint` for people.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

MAX_NAMES = 24
"""How many known names a message lists."""


class UserError(Exception):
    """Something the user can put right; its text is one sentence that says what is wrong and what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    kind = "user error"
    """The sort of error. Programs decide by this, never by the message."""
    hint = ""
    """What to do about it, if it is kept apart from what is wrong."""

    def __init__(self, text: str = "", *, hint: str = "", kind: str = ""):
        """The error's text is `text`, followed by `hint` after a colon."""
        super().__init__(f"{text}: {hint}" if hint else text)
        if hint:
            self.hint = hint
        if kind:
            self.kind = kind


class TryAgain(UserError):
    """The same command may succeed if it is run again: exit status 75 (EX_TEMPFAIL)."""

    kind = "try again"


class ContractError(UserError):
    """A contract that cannot be read, an observation that does not fit it, or two contracts that differ."""

    kind = "contract error"


class BundleError(UserError):
    """A policy bundle that is missing, damaged, or not what its manifest says."""

    kind = "bundle error"


class DeadlineMissed(Exception):
    """No decision arrived by the deadline.

    The control loop holds; a later reply to this request is never applied.
    """

    kind = "deadline missed"


class PolicyClosed(DeadlineMissed):
    """The policy was closed before the call, or by another thread during it: no decision will ever come."""

    kind = "closed"


class _Process:
    """This process's id, kept: asking for it takes a system call."""

    def __init__(self) -> None:
        self.id = os.getpid()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.id = os.getpid()


_process = _Process()


def require_process(pid: int, what: str, cure: str = "") -> None:
    """Raise UserError unless this is process `pid`: threads and connections do not live on in its forks.

    `cure` is what else the hint says.
    """
    if _process.id != pid:
        raise UserError(
            f"{what} was made in process {pid} and cannot be used in its fork {_process.id}",
            hint=f"make it after the fork, in the process that uses it{cure}",
            kind="forked",
        )


def nearest(word: str, known: Iterable[str], *, cutoff: float) -> list[str]:
    """Up to three known names like `word`, most similar first; `cutoff` is the least similarity (0 to 1)."""
    # Only errors need it, and a robot's client should start quickly.
    import difflib

    return difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`: did you mean ...?` for a misspelt word, or the list of what there is. Empty if there is nothing."""
    names = sorted(known)
    if near := nearest(word, names, cutoff=0.5):
        return f": did you mean {' or '.join(near)}?"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f": there is {', '.join(names[:MAX_NAMES])}{more}" if names else ""
