"""The one exception that stands for a user's mistake, and the statuses that a command ends with."""

FAILED = 1  # an error of ours
MISTAKE = 2  # the user's
AGAIN = 75  # stopped, and to be gone on with: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # by SIGINT, as shells say it


class UserError(Exception):
    """A mistake that the user can mend: a file, a flag, a config, data, a checkpoint.

    Its text is one line that says what is wrong, where, and what to do. The command line
    prints it without a traceback and ends with exit status 2.
    """
