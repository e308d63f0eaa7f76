"""The console for tables of labels and file names, which may be text of any kind."""

from typing import Any

from rich.console import Console
from rich.text import Text

from taillift.models.terminal import printable_lines


class PlainConsole(Console):
    """rich's console, for which "[/x]" is not markup, ":x:" no emoji, and an escape no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)
