"""A dialogue about an image in a terminal: questions in, answers with masks out.

Bad input costs a sentence, never the dialogue.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pixellm.answer_files import check_image_name, overlay_bytes
from pixellm.cli.display import print_answer
from pixellm.cli.images import file_of, name_of, overlay_name, read_image
from pixellm.files import STANDARD, check_file, write_files
from pixellm.image_files import is_url

if TYPE_CHECKING:
    from PIL import Image

    from pixellm.engine import ChatSession, Engine

HELP = """Type a question about the image. Earlier turns are kept in mind. Commands:
  /save [PATH]   write the image with the masks of the last answer
  /image PATH    talk about another image, or begin anew about the same one
  /help          show this
  /quit          leave (or Ctrl-D)"""


def open_image(typed: str) -> Image.Image:
    """The image that a dialogue is to be about."""
    if typed == STANDARD:
        raise ValueError("Questions come from standard input; name the file of an image.")
    return read_image(typed)


class Chat:
    """A dialogue of several turns about an image, which is encoded once.

    ``typed`` is what the user calls it, see :mod:`pixellm.cli.images`; complaints go to ``errors``,
    and ``options`` are of the answers, see :class:`~pixellm.engine.AnswerOptions`.
    """

    def __init__(
        self,
        engine: Engine,
        typed: str,
        image: Image.Image,
        console: Console,
        errors: Console,
        **options: Any,
    ) -> None:
        self.engine = engine
        self.options = options
        self.console = console
        self.errors = errors
        self.open(typed, image)

    def open(self, typed: str, image: Image.Image) -> None:
        """Begin a dialogue about an image."""
        self.session: ChatSession = self.engine.chat(image)
        self.typed = typed

    def run(self) -> None:
        """Read lines until /quit or the end of the input."""
        if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text cost their line alone
            sys.stdin.reconfigure(errors="surrogateescape")
        with suppress(ImportError):  # line editing and history, where the system has them
            import readline  # noqa: F401
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                line = input(prompt)
            except EOFError:
                return
            if line.split()[:1] == ["/quit"]:
                return
            self.handle(line)

    def handle(self, line: str) -> None:
        """Do what one line says; complain in one sentence where that is impossible."""
        if not line.strip():
            return
        try:
            if line.startswith("/"):
                self._obey(*line.split(maxsplit=1))
            else:
                print_answer(self.console, self.session.ask(line, **self.options))
        except (ValueError, OSError) as error:
            from pixellm.engine.dialogues import TooLongError

            ends = isinstance(error, TooLongError) and self.session.history
            self._complain(f"{error} /image PATH begins anew." if ends else str(error))
        except (RuntimeError, MemoryError) as error:
            from pixellm.engine.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            self._complain("There is not enough memory for this; ask about a smaller image.")

    def _complain(self, sentence: str) -> None:
        self.errors.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def _obey(self, command: str, argument: str = "") -> None:
        argument = argument.strip()
        path = Path(argument).expanduser()
        if command == "/help":
            self.console.print(HELP, markup=False, highlight=False)
        elif command == "/save":
            self._save(path if argument else overlay_name(name_of(self.typed)))
        elif command == "/image" and argument:
            typed = argument if is_url(argument) else str(path)
            self.open(typed, open_image(typed))
        elif command == "/image":
            raise ValueError("Name the image: /image PATH.")
        else:
            raise ValueError(f"There is no command {command}; /help lists them.")

    def _save(self, path: Path) -> None:
        if self.session.last is None:
            raise ValueError("There is no answer to save yet; ask something first.")
        check_image_name(path, original=file_of(self.typed))
        check_file(path)
        write_files({path: overlay_bytes(self.session.image, self.session.last, path.suffix)})
        self.console.print(f"Saved {path}", markup=False, highlight=False, soft_wrap=True)
