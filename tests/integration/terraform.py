"""Terraform's language, as far as the example speaks it, and what its resources write to the server.

Neither the program nor the provider is needed, which come from a registry; what each resource writes is the provider's
documented behaviour.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Configuration"]

_TOKEN = re.compile(
    r"""
    (?P<skip> \s+ | \#[^\n]* )
    | <<-(?P<mark>\w+)\n (?P<text>.*?\n) [ ]*(?P=mark)(?=[ ]*\n)
    | "(?P<string>(?:\\.|[^"\\])*)"
    | (?P<number>\d+)
    | (?P<word>[A-Za-z_][\w-]*)
    | (?P<sign>==|!=|[][{}()=?:.,])
    """,
    re.VERBOSE | re.DOTALL,
)

#: The value of an expression, when it is wanted.
Value = Callable[["_Names"], Any]
_FUNCTIONS: dict[str, Callable[..., Any]] = {"toset": list, "trimspace": str.strip}
_WORDS = {"true": True, "false": False, "null": None}


@dataclass
class Block:
    """``kind "label" … { … }``."""

    kind: str
    labels: list[str]
    values: dict[str, Value] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


@dataclass
class _Names:
    """What an expression may refer to: the configuration, and the key of the one that is made of a ``for_each``."""

    configuration: Configuration
    key: str | None = None

    def look_up(self, path: tuple[str, ...]) -> Any:
        first, *rest = path
        if first == "var":
            return self.configuration.variable(rest[0])
        if first == "local":
            return self.configuration.locals[rest[0]](self)
        if path == ("each", "key"):
            return self.key
        values = self.configuration.resources[first, rest[0]].values
        # An auth method's path is its type, where it is not given.
        return values[rest[1] if rest[1] in values else "type"](self)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(self._split(text))
        self._at = 0

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            assert found is not None, f"not understood: {text[at : at + 40]!r}"
            at = found.end()
            kind = found.lastgroup or ""
            if kind != "skip":
                yield kind, textwrap.dedent(found[kind]) if kind == "text" else found[kind]
        yield "end", ""

    def _next(self) -> tuple[str, str]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _took(self, sign: str) -> bool:
        if self._tokens[self._at] != ("sign", sign):
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        assert self._took(sign), f"{sign} is missing before {self._tokens[self._at : self._at + 5]}"

    def body(self, block: Block) -> Block:
        """*block* with all up to its end."""
        while self._tokens[self._at][0] == "word":
            name = self._next()[1]
            if self._took("="):
                block.values[name] = self.expression()
                continue
            inner = Block(name, [])
            while not self._took("{"):
                inner.labels.append(self._next()[1])
            block.blocks.append(self.body(inner))
            self._expect("}")
        return block

    def expression(self) -> Value:
        value = self._operand()
        for sign in ("==", "!="):
            if self._took(sign):
                value = _compared(value, self._operand(), equal=sign == "==")
        if self._took("?"):
            condition, yes = value, self.expression()
            self._expect(":")
            no = self.expression()
            return lambda names: (yes if condition(names) else no)(names)
        return value

    def _operand(self) -> Value:
        if self._took("["):
            items = self._items("]")
            return lambda names: [item(names) for item in items]
        if self._took("{"):
            values = self.body(Block("", [])).values
            self._expect("}")
            return lambda names: {name: value(names) for name, value in values.items()}
        kind, text = self._next()
        if kind == "number":
            return lambda names: int(text)
        if kind in ("string", "text"):
            plain = text.replace('\\"', '"') if kind == "string" else text
            return lambda names: re.sub(r"\$\{(.*?)}", lambda each: str(_Parser(each[1]).expression()(names)), plain)
        assert kind == "word", (kind, text)
        return self._named(text)

    def _named(self, word: str) -> Value:
        if self._took("("):
            arguments = self._items(")")
            return lambda names: _FUNCTIONS[word](*(argument(names) for argument in arguments))
        if word in _WORDS:
            return lambda names: _WORDS[word]
        path = [word]
        while self._tokens[self._at] in (("sign", "."), ("sign", "[")):
            if self._took("["):  # of the one that there is, or is not
                self._next()
                self._expect("]")
            else:
                self._expect(".")
                path.append(self._next()[1])
        return lambda names: names.look_up(tuple(path))

    def _items(self, end: str) -> list[Value]:
        items = []
        while not self._took(end):
            items.append(self.expression())
            self._took(",")
        return items


def _compared(left: Value, right: Value, *, equal: bool) -> Value:
    return lambda names: (left(names) == right(names)) is equal


class Configuration:
    """What a configuration's *text* comes to with these variables; the others have their defaults."""

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        every = _Parser(text).body(Block("", [])).blocks
        self._given = variables
        self._variables = {block.labels[0]: block.values for block in every if block.kind == "variable"}
        self.locals = next(block.values for block in every if block.kind == "locals")
        self.resources = {(block.labels[0], block.labels[1]): block for block in every if block.kind == "resource"}
        assert variables.keys() <= self._variables.keys()

    def variable(self, name: str) -> Any:
        """Its value, or its default."""
        return self._given[name] if name in self._given else self._variables[name]["default"](_Names(self))

    def writes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The path of each call to the server that makes something, and its body."""
        for (kind, _), block in self.resources.items():
            values = dict(block.values)
            count = values.pop("count", None)
            if count is not None and not count(_Names(self)):
                continue
            each = values.pop("for_each", None)
            for key in [None] if each is None else each(_Names(self)):
                names = _Names(self, key)
                body = {name: value(names) for name, value in values.items()}
                for inner in block.blocks:
                    body[inner.kind] = {name: value(names) for name, value in inner.values.items()}
                namespace = body.pop("namespace", None)
                path, body = _CALLS[kind](body)
                yield f"{namespace}/{path}" if namespace else path, body


def _connection(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    more = {"plugin_name": "postgresql-database-plugin", **body.pop("postgresql")}
    return f"{body.pop('backend')}/config/{body.pop('name')}", {**body, **more}


#: Path and body of the call that each kind of resource makes.
_CALLS: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "vault_namespace": lambda body: (f"sys/namespaces/{body.pop('path')}", body),
    "vault_mount": lambda body: (f"sys/mounts/{body.pop('path')}", body),
    "vault_policy": lambda body: (f"sys/policies/acl/{body.pop('name')}", body),
    "vault_auth_backend": lambda body: (f"sys/auth/{body.get('path', body['type'])}", body),
    "vault_kubernetes_auth_backend_config": lambda body: (f"auth/{body.pop('backend')}/config", body),
    "vault_kubernetes_auth_backend_role": lambda body: (
        f"auth/{body.pop('backend')}/role/{body.pop('role_name')}",
        body,
    ),
    "vault_database_secret_backend_connection": _connection,
    "vault_database_secret_backend_role": lambda body: (f"{body.pop('backend')}/roles/{body.pop('name')}", body),
}
