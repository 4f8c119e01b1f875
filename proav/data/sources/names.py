"""Names of files on disk, found in whichever Unicode form they are asked for.

macOS, and archives made there, write an accent and its letter as two characters (NFD). People type them as
one (NFC). To Linux these are different names. A file is always opened by the bytes of its own name, and its
key is made of them. `proav/text.py` brings labels into one form.
"""

import os

from proav import storage
from proav.text import one_form


class NamesOnDisk:
    """Finds local paths. A folder is listed at most once, and only for a name that is not ASCII."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str:
        """The path as written on disk; a remote path and parts that nothing has stay as given."""
        if path.isascii() or storage.is_remote(path):
            return path
        folder, name = os.path.split(path)
        found = self.find(folder)
        if not name.isascii():
            names = self._names_in(found or ".")
            name = names.get(name) or names.get(one_form(name), name)
        return os.path.join(found, name)

    def _names_in(self, folder: str) -> dict[str, str]:
        """The folder's names that are not ASCII, each under itself and under its composed form."""
        if folder not in self._folders:
            try:
                names = sorted(name for name in os.listdir(folder) if not name.isascii())
            except OSError:  # no such folder: missing files are reported later
                names = []
            by_form = {one_form(name): name for name in reversed(names)}
            self._folders[folder] = by_form | {name: name for name in names}
        return self._folders[folder]
