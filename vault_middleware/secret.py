"""What a getter returns: immutable values that do not print themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Never, NoReturn

__all__ = ["DynamicSecret", "Lease", "Secret", "freeze"]

MASK = "******"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as the server granted it; a renewal makes a new one."""

    lease_id: str = field(repr=False)
    #: What was granted, in seconds from the moment the request was sent.
    lease_duration: float
    renewable: bool
    #: On the monotonic clock, in seconds; no later than the end of the token that made the lease.
    deadline: float


def _refuse(self: object, *_args: object, **_kwargs: object) -> Never:
    raise TypeError(f"a {type(self).__name__} cannot be changed: it is shared by every request that reads it")


def _refuse_pickle(self: object, _protocol: object = None) -> NoReturn:
    raise TypeError(
        f"a {type(self).__name__} cannot be pickled, so that no secret leaves the process by accident; "
        "pass the path and read it there"
    )


class _FrozenDict(dict[str, Any]):
    """A nested object of a secret: a dict for ``json.dumps`` and ``**``, but immutable and masked."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
    __reduce_ex__ = _refuse_pickle

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: {MASK}" for key in self) + "}"

    __str__ = __sentry_repr__ = __repr__

    def __copy__(self) -> _FrozenDict:
        return self

    def __deepcopy__(self, _memo: object) -> _FrozenDict:
        return self


class _FrozenList(tuple[Any, ...]):
    """A nested list of a secret: immutable and masked; ``json.dumps`` writes it as a list."""

    __slots__ = ()
    __reduce_ex__ = _refuse_pickle

    def __repr__(self) -> str:
        return f"[{MASK} × {len(self)}]" if self else "[]"

    __str__ = __sentry_repr__ = __repr__

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, list) else other)

    __hash__ = tuple.__hash__

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _FrozenList(found) if isinstance(index, slice) else found

    def __copy__(self) -> _FrozenList:
        return self

    def __deepcopy__(self, _memo: object) -> _FrozenList:
        return self


def freeze(value: Any) -> Any:
    """*value*, a tree of JSON, with every object and list in it made immutable."""
    if isinstance(value, dict):
        return _FrozenDict((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list):
        return _FrozenList(freeze(item) for item in value)
    return value


class Secret(Mapping[str, Any]):
    """A static secret: an immutable mapping, at every depth, whose ``repr`` shows the keys and no value.

    Attributes
    ----------
    path : str
        The path as it was asked for, relative to the namespace.
    version : int | None
        The version of a KV v2 secret, else None.
    request_id : str
        The ``request_id`` of the answer that brought the value: the key into Vault's own audit log.
    """

    __slots__ = ("__weakref__", "_data", "path", "request_id", "version")

    path: str
    version: int | None
    request_id: str

    def __init__(self, path: str, data: Mapping[str, Any], *, version: int | None = None, request_id: str = "") -> None:
        fill = object.__setattr__
        fill(self, "path", path)
        fill(self, "version", version)
        fill(self, "request_id", request_id)
        fill(self, "_data", data if isinstance(data, _FrozenDict) else freeze(dict(data)))

    def __getitem__(self, key: str) -> Any:
        try:
            return self._data[key]  # type: ignore[attr-defined]
        except KeyError:
            pass
        raise KeyError(f"{key!r} is not in the secret {self.path!r}; it has the keys {sorted(self)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version}"
        return f"{type(self).__name__}({self.path!r}{version}, keys={sorted(self)})"

    def __sentry_repr__(self) -> str:
        """For error reporters that would walk a mapping instead of printing it."""
        return repr(self)

    __setattr__ = __delattr__ = _refuse
    __reduce_ex__ = _refuse_pickle

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _memo: object) -> Secret:
        return self


class DynamicSecret(Secret):
    """A secret with a lease: database credentials, say.

    Attributes
    ----------
    lease : Lease
        The lease as it stood when this object was made. A renewal publishes a new object with the same values.
    """

    __slots__ = ("lease",)

    lease: Lease

    def __init__(self, path: str, data: Mapping[str, Any], lease: Lease, *, request_id: str = "") -> None:
        super().__init__(path, data, request_id=request_id)
        object.__setattr__(self, "lease", lease)

    def with_lease(self, lease: Lease) -> DynamicSecret:
        """The same values under *lease*, for a renewal."""
        return DynamicSecret(self.path, self._data, lease, request_id=self.request_id)  # type: ignore[attr-defined]
