"""A Django project in one module, settings and views: what the Django files of the documentation serve in a test."""

from __future__ import annotations

import os

from django.http import HttpRequest, HttpResponse
from django.urls import path

SECRET_KEY = os.urandom(32).hex()
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = __name__
MIDDLEWARE = ["vault_middleware.integrations.django.VaultMiddleware"]


def who(request: HttpRequest) -> HttpResponse:
    """The user of the lease; both secrets that are prefetched are read."""
    request.state.secrets.get_secret("api-gateway/api-key")
    return HttpResponse(request.state.secrets.get_dynamic_secret("database/creds/api-gateway")["username"])


def pid(_request: HttpRequest) -> HttpResponse:
    """Which process answers; nothing is read."""
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("who", who), path("pid", pid)]
