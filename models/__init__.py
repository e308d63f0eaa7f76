"""What a model is: in torch (`lift`), on disk and at run time (`bundle`), and the embedded one."""


class UserError(Exception):
    """An error its reader can mend. The text is one line: what is wrong, where, what to do."""
