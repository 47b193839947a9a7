"""A Django project of a few views, for whichever settings a test lays over it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from tests.fakes import DYNAMIC, STATIC
from vault_middleware import current_secrets

MIDDLEWARE = "vault_middleware.integrations.django.VaultMiddleware"

#: What the views have seen; a test clears it first.
seen: list[Any] = []

#: The last of them is set when `hang` has its lease.
holding: list[asyncio.Event] = []


def project(**more: Any) -> Any:
    """Settings under which the views of this file are served; *more* over them."""
    if not settings.configured:
        settings.configure(SECRET_KEY="x" * 50)
    if not apps.ready:
        django.setup()
    usual = {"ROOT_URLCONF": __name__, "MIDDLEWARE": [MIDDLEWARE], "ALLOWED_HOSTS": ["*"]}
    return override_settings(**{**usual, **more})


def passing_sync(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that only knows the sync way, as many of other packages do."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    return middleware


def view(request: HttpRequest) -> HttpResponse:
    assert request.state.secrets is current_secrets()
    seen.append(request.state.secrets)
    return HttpResponse(request.state.secrets.get_secret(STATIC)["value"])


async def aview(request: HttpRequest) -> HttpResponse:
    assert request.state.secrets is current_secrets()
    seen.append(request.state.secrets)
    return HttpResponse((await request.state.secrets.aget_secret(STATIC))["value"])


def stream(request: HttpRequest) -> StreamingHttpResponse:
    seen.append(request.state.secrets)

    def body() -> Iterator[str]:
        for _ in range(2):
            seen.append(repr(seen[0]))
            yield current_secrets().get_dynamic_secret(DYNAMIC)["username"]

    return StreamingHttpResponse(body())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    seen.append(request.state.secrets)

    async def body() -> AsyncIterator[str]:
        for _ in range(2):
            seen.append(repr(seen[0]))
            yield (await current_secrets().aget_dynamic_secret(DYNAMIC))["username"]
        if request.GET.get("fail"):
            raise RuntimeError("the body fails")

    return StreamingHttpResponse(body())


async def hang(request: HttpRequest) -> HttpResponse:
    seen.append(request.state.secrets)
    await request.state.secrets.aget_dynamic_secret(DYNAMIC)
    holding[-1].set()
    await asyncio.Event().wait()
    raise AssertionError


def fail(request: HttpRequest) -> HttpResponse:
    seen.append(request.state.secrets)
    raise RuntimeError("the view fails")


def missing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.state.secrets.get_secret("nowhere/at-all")))


def manager_is(request: HttpRequest) -> HttpResponse:
    return HttpResponse(repr(request.state.secrets_manager))


def leak(request: HttpRequest) -> HttpResponse:
    value = request.state.secrets.get_secret(STATIC)["value"]
    response = HttpResponse(f"<{value}>" if request.GET["in"] == "body" else "fine")
    if request.GET["in"] == "header":
        response["X-Key"] = value
    elif request.GET["in"] == "cookie":
        response.set_cookie("key", value)
    response._resource_closers.append(lambda: seen.append("closed"))
    return response


def leak_stream(request: HttpRequest) -> StreamingHttpResponse:
    value = request.state.secrets.get_secret(STATIC)["value"]
    return StreamingHttpResponse(iter(["begun, ", value[:9], value[9:], " the end"]))


async def aleak_stream(request: HttpRequest) -> StreamingHttpResponse:
    value = (await request.state.secrets.aget_secret(STATIC))["value"]

    async def body() -> AsyncIterator[str]:
        for piece in ("begun, ", value[:9], value[9:], " the end"):
            yield piece

    return StreamingHttpResponse(body())


def leak_file(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(request.state.secrets.get_secret(STATIC)["value"].encode()))


urlpatterns = [
    path("leak", leak),
    path("leak/stream", leak_stream),
    path("leak/astream", aleak_stream),
    path("leak/file", leak_file),
    path("view", view),
    path("aview", aview),
    path("stream", stream),
    path("astream", astream),
    path("hang", hang),
    path("fail", fail),
    path("missing", missing),
    path("manager", manager_is),
]
