"""Text from elsewhere that is printed on a line of a terminal or a log."""


def printable(text: str) -> str:
    """Return `text` with every character escaped that is not printed as itself.

    Labels, file names and messages of libraries may hold line ends that forge a line, or escape
    sequences that change the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )
