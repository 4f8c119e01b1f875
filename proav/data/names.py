"""Names of files on disk, found in whichever Unicode form they are asked for.

A file that macOS or an archive of it has named has its accents apart from their letters, and whoever types the name writes them together.
Linux holds the two for different names. The file's own name, with its own bytes, is what is opened and what its key is made of.
"""

import os

from proav import storage
from proav.text import one_form


class NamesOnDisk:
    """Finds local paths; each folder that a name which is not ASCII is looked for in is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str:
        """The path as it is written on disk; `path` itself if it is there, if nothing of that name is, or if it is remote."""
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
            except OSError:  # no such folder: what is looked for there is told to be missing when its turn comes
                names = []
            self._folders[folder] = {one_form(name): name for name in reversed(names)} | {name: name for name in names}
        return self._folders[folder]
