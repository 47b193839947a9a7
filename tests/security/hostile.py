"""Hostile answers: from what a good server would say, and a source of chance, something that it never would.

::

    reply, name = hostile(random.Random(7), {"data": {"value": "x"}, "lease_duration": 60})

Every answer carries `PLANTED` somewhere in what is wrong with it, which may turn up in no message of ours.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

from tests.scripted import Exchange, Reply, cut, drip, endless, page, raw, redirect, reset, silence

__all__ = ["PLANTED", "SLOW", "hostile"]

#: What a hostile server would like to see in our logs, or in another's browser.
PLANTED = "planted-by-the-server"

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

#: What may stand in place of any value of an answer.
_VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    -1e308,
    1e308,
    1e-9,
    0,
    0.0,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**400,
    "",
    "60",
    "1e308",
    PLANTED,
    f"{PLANTED}\r\nX-Vault-Token: x\x00\u2028{{}}",
    "\ud800",
    f"../{PLANTED}/",
    PLANTED * 4000,
    [],
    [PLANTED],
    [[[[]]]],
    {},
    {"": {"": [None]}},
    {PLANTED: PLANTED},
    [0] * 5000,
    {f"{PLANTED}-{number}": number for number in range(2000)},
]

_STATUSES = [100, 101, 199, 201, 202, 204, 205, 206, 226, 300, 304, 400, 401, 402, 403, 404, 405, 409, 412, 418, 429]
_STATUSES += [451, 472, 473, 499, 500, 501, 502, 503, 504, 599, 600, 999]

_WORDS = ["permission denied", "lease not found", "unsupported operation", "Vault is sealed", "unknown role", PLANTED]

#: Headers that mean something to a client, with what none should say.
_HEADERS = [
    ("Retry-After", "999999999"),
    ("Retry-After", "-1"),
    ("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"),
    ("Age", "999999999"),
    ("Age", "-5"),
    ("Age", "1e308"),
    ("Content-Length", "-1"),
    ("Content-Length", "9" * 400),
    ("Content-Length", "0x10"),
    ("Content-Length", "1, 2"),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "br, zstd, x"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip, chunked"),
    ("Transfer-Encoding", "x" * 3000),
    ("Content-Type", "text/html; charset=utf-7"),
    ("Set-Cookie", f"{PLANTED}=1; Domain=127.0.0.1; Path=/"),
    ("Connection", "Upgrade"),
    ("Location", "http://elsewhere.invalid/"),
    ("X-Long", PLANTED * 2000),
    ("X-Bytes", "\xff\xfe\x80"),
    (f"X {PLANTED}", ": :"),
]

_LOCATIONS = [
    "http://elsewhere.invalid/v1/x",
    "https://127.0.0.1:1/v1/x",
    "//127.0.0.1:1/",
    "http://127.0.0.1@127.0.0.1:1/",
    "/v1/sys/health",
    "/v1/{planted}",
    "",
    "/",
    "\t/x",
    "/\\127.0.0.1:1/",
    "file:///etc/passwd",
    "javascript:{planted}",
    "http://[::1",
    "http://127.0.0.1:99999999/",
    "/" + "a" * 9000,
    "/\xe9\xff",
]


def _body(good: Any) -> bytes:
    return json.dumps(good).encode()


def _planted(chance: random.Random, good: Any) -> Any:
    """*good* with one to three of its values, at any depth, replaced or taken away."""
    tree = {"root": copy.deepcopy(good)}
    for _ in range(chance.randint(1, 3)):
        node: Any = tree
        while True:
            key = chance.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
            inner = node[key]
            if not isinstance(inner, dict | list) or not inner or (node is not tree and chance.random() < 0.3):
                break
            node = inner
        if chance.random() < 0.15 and node is not tree:
            del node[key]
        else:
            node[key] = copy.deepcopy(chance.choice(_VALUES))
        if not tree.get("root"):
            break
    return tree["root"]


def _mistyped(chance: random.Random, good: Any) -> Reply:
    return page(_body(_planted(chance, good)), chance.choice([200, 200, 200, 200, *_STATUSES[1:]]), keep=True)


def _status(chance: random.Random, good: Any) -> Reply:
    errors = {"errors": chance.sample(_WORDS, 2), "sealed": chance.choice([True, "yes", None])}
    body = chance.choice([good, errors, errors, {"errors": {"a": PLANTED}}, {"errors": [[PLANTED], 7]}, PLANTED])
    return page(_body(body), chance.choice(_STATUSES))


def _headers(chance: random.Random, good: Any) -> Reply:
    body = _body(good)
    lines = [f"{name}: {value}" for name, value in chance.sample(_HEADERS, chance.randint(1, 3))]
    if chance.random() < 0.5:
        lines.append(f"Content-Length: {len(body)}")
    return raw(_HEAD + "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def _malformed(chance: random.Random, good: Any) -> Reply:
    """The good answer's bytes with some of them changed, taken away or put in."""
    data = bytearray(_HEAD + b"Content-Length: %d\r\n\r\n" % len(_body(good)) + _body(good))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        what = chance.random()
        if what < 0.4:
            data[at] = chance.randrange(256)
        elif what < 0.7:
            del data[at : at + chance.randint(1, 20)]
        else:
            data[at:at] = chance.randbytes(chance.randint(1, 20))
        data = data or bytearray(b" ")
    return raw(bytes(data))


def _truncated(chance: random.Random, good: Any) -> Reply:
    if chance.random() < 0.5:
        return cut(good, chance.randrange(len(_body(good))))
    whole = _HEAD + b"Content-Length: %d\r\n\r\n" % len(_body(good)) + _body(good)
    return raw(whole[: chance.randrange(len(whole))])


def _noise(chance: random.Random, good: Any) -> Reply:
    return chance.choice(
        [
            raw(chance.randbytes(chance.randint(1, 400))),
            raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64)),
            raw(b"SSH-2.0-OpenSSH_9\r\n"),
            raw(b"\x15\x03\x01\x00\x02\x02\x16"),
            raw(b"HTTP/0.9 200\r\n\r\n{}"),
            raw(b"HTTP/1.1 " + b"2" * 5000 + b"\r\n\r\n"),
            raw(b"HTTP/1.1 200" + b" " * 70000),
            raw(b"\r\n" * 1000),
            reset,
        ]
    )


def _deep(chance: random.Random, good: Any) -> Reply:
    depth = chance.choice([200, 900, 5_000, 100_000])
    opening, closing = chance.choice([("[", "]"), ('{"data":', "}"), ('{"a":[', "]}")])
    inner = opening * depth + json.dumps(PLANTED) + closing * depth
    key = chance.choice(["data", "auth", "errors", "lease_duration"])
    body = inner if chance.random() < 0.3 else json.dumps({**good, key: 0})[:-1] + f', "{key}": {inner}}}'
    return page(body.encode(), 200)


def _odd_json(chance: random.Random, good: Any) -> Reply:
    text = json.dumps(good)
    return page(
        chance.choice(
            [
                text.encode("utf-16"),
                text.encode("utf-32"),
                b"\xef\xbb\xbf" + text.encode(),
                text.encode() + text.encode(),
                text.replace(": ", ": 1e999, " + '"x": ', 1).encode(),
                b"[" + text.encode() + b"]",
                b'{"data": ' + b"9" * 100_000 + b"}",
                b'{"data": -1e' + b"9" * 50 + b"}",
                json.dumps(PLANTED).encode(),
                b"null",
                b"NaN",
                b"<html>" + PLANTED.encode(),
                b'{"data": "\xff\xfe"}',
                b'{"data": {"a": 1, "a": {"a": 2}}, "data": []}',
            ]
        ),
        chance.choice([200, 200, 500]),
    )


def _chunks(chance: random.Random, good: Any) -> Reply:
    start = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    return raw(
        start
        + chance.choice(
            [
                b"zz\r\n{}\r\n0\r\n\r\n",
                b"-5\r\n{}\r\n",
                b"ffffffffffffffff\r\n{}",
                b"2;" + b"x" * 70000 + b"\r\n{}\r\n0\r\n\r\n",
                b"2\r\n{}0\r\n\r\n",
                b"2\r\n{}\r\n0\r\n" + b"X-Trailer: x\r\n" * 300 + b"\r\n",
                b"%x\r\n" % len(_body(good)) + _body(good) + b"\r\n",
            ]
        )
    )


def _bomb(chance: random.Random, good: Any) -> Reply:
    """Some hundred kB that would be 100 MB, were they unpacked."""
    name, data = chance.choice(_BOMBS)
    return page(data, 200, {"Content-Encoding": name, "Content-Type": "application/json"})


_SPACES = b'{"data": "' + b" " * 100_000_000 + b'"}'
_BOMBS = [("gzip", gzip.compress(_SPACES, 9)), ("deflate", zlib.compress(_SPACES, 9)), ("x-gzip", b"\x1f\x8b")]
del _SPACES


def _huge(chance: random.Random, good: Any) -> Reply:
    """More than is read of any body, or a value of some megabytes."""
    if chance.random() < 0.5:
        return endless
    text = json.dumps({**good, "data": {"value": PLANTED * 100_000}}) if isinstance(good, dict) else "{}"
    return page(text.encode(), 200)


def _many_headers(chance: random.Random, good: Any) -> Reply:
    return raw(_HEAD + b"X-More: and more\r\n" * chance.choice([50, 99, 101, 20_000]) + b"\r\n{}")


def _continuing(exchange: Exchange) -> None:
    """Interim answers without end."""
    with contextlib.suppress(OSError):
        while not exchange.released.is_set():
            exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def _redirecting(chance: random.Random, good: Any) -> Reply:
    location = chance.choice(_LOCATIONS).format(planted=PLANTED)
    return redirect(location, chance.choice([301, 302, 303, 307, 308]))


def _slow(chance: random.Random, good: Any) -> Reply:
    whole = _HEAD + b"Content-Length: 100000\r\n\r\n" + _body(good)
    return chance.choice(
        [
            silence,
            drip(_HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
            drip(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
            drip(_HEAD, b"X-More: and more\r\n"),
            drip(b"HTTP/1.1 ", b"2"),
            drip(whole, b" "),
            _continuing,
        ]
    )


def _twice(chance: random.Random, good: Any) -> Reply:
    """A good answer, and behind it on the same connection another that nobody asked for."""
    body = _body(good)
    one = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def reply(exchange: Exchange) -> None:
        exchange.send(one + one.replace(b"{", b'{"smuggled": 1, ', 1))
        exchange.keep = True

    return reply


_KINDS: list[tuple[int, Callable[[random.Random, Any], Reply]]] = [
    (30, _mistyped),
    (12, _status),
    (10, _headers),
    (8, _malformed),
    (6, _truncated),
    (5, _noise),
    (5, _deep),
    (6, _odd_json),
    (4, _chunks),
    (2, _bomb),
    (1, _huge),
    (3, _many_headers),
    (6, _redirecting),
    (4, _slow),
    (2, _twice),
]

#: The kinds that end with the client's time.
SLOW = {"slow", "huge"}


def hostile(chance: random.Random, good: Any) -> tuple[Reply, str]:
    """A hostile answer in place of *good*, and the name of its kind."""
    (make,) = chance.choices([make for _, make in _KINDS], [weight for weight, _ in _KINDS])
    return make(chance, good), make.__name__.strip("_")
