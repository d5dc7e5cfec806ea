"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: a file, a flag, a config, data, a checkpoint.

    Its text is one line that says what is wrong, where, and what to do. The command line
    prints it without a traceback and ends with exit status 2.
    """
