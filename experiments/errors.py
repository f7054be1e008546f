"""The error that ends a command with one line instead of a traceback."""


class UserError(Exception):
    """Bad input; its text is one line naming the value and what is allowed."""
