"""The settings that docs/frameworks/django.md shows, in a project as `django-admin startproject` makes it, on real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vault_middleware.devstack import DevStack

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks" / "django.md").read_text()
FILES = re.findall(r"^<!-- file: settings\.py -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

URLS = """
from django.http import HttpResponse
from django.urls import path

def view(request):
    return HttpResponse(request.state.secrets.get_dynamic_secret("database/creds/api-gateway")["username"])

urlpatterns = [path("", view)]
"""

ASKING = """
from django.core.wsgi import get_wsgi_application
get_wsgi_application()
from django.test import Client
from vault_middleware.integrations.django import secrets_manager
print(Client().get("/", headers={"Host": "localhost"}).text)
print(secrets_manager().config.vault_role)
"""


@pytest.mark.integration
def test_the_settings_make_a_project_that_passes_its_checks_and_reads_its_secrets(
    stack: DevStack, tmp_path: Path
) -> None:
    (block,) = FILES
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
    environ = {**clean, **stack.environ, "DJANGO_SETTINGS_MODULE": "gateway.settings"}
    environ["VAULT_ROLE"] = "of the environment, which the settings lie over"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    del environ["DJANGO_SETTINGS_MODULE"]
    run("-m", "django", "startproject", "gateway", ".")
    environ["DJANGO_SETTINGS_MODULE"] = "gateway.settings"
    with (tmp_path / "gateway" / "settings.py").open("a") as settings:
        settings.write(block)
    (tmp_path / "gateway" / "urls.py").write_text(URLS)
    assert "no issues" in run("manage.py", "check", "--fail-level", "WARNING")
    user, role = run("-c", ASKING).split()
    assert user.startswith("v-lotabots-")
    assert role == "api-gateway"
