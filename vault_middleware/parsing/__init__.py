"""What a setting may look like: one function a kind, from the text of a variable or a Python value to the value used.

Each gives its own result back unchanged, and raises ``ValueError`` that says what was wrong and what is accepted. What
may hold a credential (an address, a token) is never shown in that message.
"""

from .places import (
    address,
    audit_log,
    file_path,
    folder,
    globs,
    host,
    mount,
    namespace,
    paths,
    proxy,
    readable_file,
)
from .words import boolean, choice, credential, duration, kv_version, optional, rate_limit, text, token, whole

__all__ = [
    "address",
    "audit_log",
    "boolean",
    "choice",
    "credential",
    "duration",
    "file_path",
    "folder",
    "globs",
    "host",
    "kv_version",
    "mount",
    "namespace",
    "optional",
    "paths",
    "proxy",
    "rate_limit",
    "readable_file",
    "text",
    "token",
    "whole",
]
