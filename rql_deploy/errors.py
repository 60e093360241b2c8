"""Errors that speak to the user."""


class UserError(Exception):
    """Something the user can put right; its text is one sentence that says what is wrong and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class TryAgain(UserError):
    """Nothing was wrong with what was asked for, and the same command may succeed: exit status 75 (EX_TEMPFAIL)."""


class ContractError(UserError):
    """A contract that cannot be read, an observation that does not fit it, or two sides that do not agree on one."""


class BundleError(UserError):
    """A policy bundle that is missing, damaged, or not what its manifest says."""


class DeadlineMissed(Exception):
    """No decision arrived by the deadline. The control loop holds; a later reply to this request is never applied."""
