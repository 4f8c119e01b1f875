"""Names of files on disk, found in whichever Unicode form they are asked for.

macOS, and archives made there, write a file's accents apart from their letters; whoever types the name
writes them together. Linux holds the two for different names. The file's own name, with its own bytes, is
what is opened and what its key is made of.
"""

import os

from proav import storage
from proav.text import one_form


class NamesOnDisk:
    """Finds local paths; each folder that a name which is not ASCII is looked for in is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str:
        """The path as written on disk; `path` itself if it is remote or nothing of that name is there."""
        if path.isascii() or storage.is_remote(path):
            return path
        folder, name = os.path.split(path)
        found = self.find(folder)
        if not name.isascii():
            names = self._names_in(found or ".")
            name = names.get(name) or names.get(one_form(name), name)
        return os.path.join(found, name)

    def _names_in(self, folder: str) -> dict[str, str]:
        """The folder's names that are not ASCII by themselves and by their composed form."""
        if folder not in self._folders:
            try:
                names = sorted(name for name in os.listdir(folder) if not name.isascii())
            except OSError:  # no such folder: what is missing is told when its turn comes
                names = []
            by_form = {one_form(name): name for name in reversed(names)}
            self._folders[folder] = by_form | {name: name for name in names}
        return self._folders[folder]
