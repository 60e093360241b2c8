"""Errors that speak to the user: each has a `kind` for programs and may have a `hint` for people."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; its text is one sentence that says what is wrong and what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    kind = "user error"
    """The same for every error of this sort, whatever its text says: programs decide by it, never by the text."""
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
    """Nothing was wrong with what was asked for, and the same command may succeed: exit status 75 (EX_TEMPFAIL)."""

    kind = "try again"


class ContractError(UserError):
    """A contract that cannot be read, an observation that does not fit it, or two sides that do not agree on one."""

    kind = "contract error"


class BundleError(UserError):
    """A policy bundle that is missing, damaged, or not what its manifest says."""

    kind = "bundle error"


class DeadlineMissed(Exception):
    """No decision arrived by the deadline. The control loop holds; a later reply to this request is never applied."""

    kind = "deadline missed"
