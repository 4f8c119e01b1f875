"""Files, local or remote: functions for both, retries of failed operations, one owner per folder."""

from proav.storage.files import (
    delete_file,
    delete_folder,
    exists,
    file_info,
    file_sha256,
    flush,
    is_folder,
    is_remote,
    join,
    list_files,
    local_copy,
    make_folder,
    open_filesystem,
    open_patiently,
    read_bytes,
    read_lines,
    read_text,
    remove_leftovers,
    rename,
    temporary_name,
    upload_file,
    write_bytes,
    write_file,
    write_folder,
    write_text,
)

__all__ = [
    "delete_file", "delete_folder", "exists", "file_info", "file_sha256", "flush", "is_folder", "is_remote",
    "join", "list_files", "local_copy", "make_folder", "open_filesystem", "open_patiently", "read_bytes",
    "read_lines", "read_text", "remove_leftovers", "rename", "temporary_name", "upload_file", "write_bytes",
    "write_file", "write_folder", "write_text",
]  # fmt: skip
