"""One form for text that is compared: a label is the same word, however a system composes its letters.

Unicode writes é as one letter, or as e and an accent. macOS and some archives write file names the second
way. Labels are kept and compared in the composed form (NFC). Paths are not: a file is opened by the bytes of
its own name.
"""

import unicodedata
from collections.abc import Sequence


def one_form(text: str) -> str:
    """The text in Unicode's composed form, NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def without_case(text: str) -> str:
    """A form of the text that is equal for texts that differ only in case or in Unicode's form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


LABEL_SEPARATOR = ";"
"""Between several labels in one text, as in a listing's column or a request."""
NO_LABEL = -1
"""Fills the row of a clip that has fewer labels than others of its batch."""


def find_labels(given: str | Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """The places of several labels among `labels`, each once; None for one that is not there.

    given: a label, several with LABEL_SEPARATOR between them, or a list of labels. If the whole text
    is a label, it is one label.
    """
    if not isinstance(given, str | list | tuple):
        given = [given]
    if isinstance(given, str):
        whole = find_label(given, labels)
        given = [given] if whole is not None else [part.strip() for part in given.split(LABEL_SEPARATOR)]
    return list(dict.fromkeys(find_label(label, labels) for label in given if label != ""))


def find_label(label: str, labels: Sequence[str]) -> int | None:
    """The place of `label` among `labels`, in any Unicode form; None if it is not there or is no text."""
    if not isinstance(label, str):
        return None
    return next((place for place, known in enumerate(labels) if one_form(known) == one_form(label)), None)
