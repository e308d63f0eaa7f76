"""The one error that every command reports as a line, without a traceback."""


class UserError(Exception):
    """An error the user can fix. The text is one line: what is wrong, where, what to do."""
