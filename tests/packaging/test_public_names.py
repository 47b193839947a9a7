"""The public surface: what can be imported, that it is explained, and that the README tells the truth about it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import vault_middleware
from vault_middleware import RequestSecrets, SecretsManager, errors
from vault_middleware.config import VARIABLES, Variable

README = Path(__file__).parents[2] / "README.md"

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(vault_middleware.__path__, "vault_middleware.")
    if not module.name.endswith((".__main__", ".demo_gateway"))
)

PUBLIC = [getattr(vault_middleware, name) for name in vault_middleware.__all__]
PUBLIC += [getattr(errors, name) for name in errors.__all__]


def test_the_public_names_are_those_of_the_documentation() -> None:
    assert vault_middleware.__all__ == [
        "DynamicSecret",
        "Lease",
        "RequestSecrets",
        "Secret",
        "SecretConfig",
        "SecretsManager",
        "VaultMiddleware",
        "VaultWSGIMiddleware",
        "current_secrets",
        "errors",
    ]


@pytest.mark.parametrize("name", ["vault_middleware", *MODULES])
def test_every_module_says_what_it_is_and_lists_its_names_in_order(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    names: list[str] = getattr(module, "__all__", [])
    # As ruff's isort-style rule sorts: constants, classes, the rest.
    assert names == sorted(names, key=lambda each: (not each.isupper(), not each[0].isupper(), each))
    assert [each for each in names if not hasattr(module, each)] == []


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_every_public_name_is_explained(public: Any) -> None:
    assert inspect.getdoc(public)
    if not inspect.isclass(public):
        return
    own = {name: value for name, value in vars(public).items() if not name.startswith("_")}
    bare = [
        name
        for name, value in own.items()
        if (inspect.isfunction(value) or isinstance(value, property | classmethod)) and not inspect.getdoc(value)
    ]
    assert bare == []


def test_every_error_that_can_be_raised_is_public_and_of_one_family() -> None:
    classes = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert classes == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.VaultMiddlewareError) for name in classes)


def test_the_manager_and_the_accessor_have_the_same_getters() -> None:
    for name in ("get_secret", "get_dynamic_secret", "aget_secret", "aget_dynamic_secret", "reject"):
        assert inspect.signature(getattr(SecretsManager, name)) == inspect.signature(getattr(RequestSecrets, name))


# -- the README


def row(variable: Variable) -> tuple[str, str, str]:
    name = f"{variable.name} / {variable.also}" if variable.also else variable.name
    return name, variable.default, variable.meaning


def table(text: str) -> list[tuple[str, ...]]:
    """The rows between the README's two markers, without the typography."""
    between = re.search(r"<!-- configuration -->\n(.*)<!-- /configuration -->", text, re.DOTALL)
    assert between, "the README has no table of the configuration"
    rows = [line for line in between[1].splitlines() if line.startswith("|")][2:]
    return [tuple(plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in rows]


def plain(cell: str) -> str:
    return cell.replace("`", "").replace("\\|", "|").strip()


def test_the_readmes_table_has_every_variable_with_its_default_and_meaning() -> None:
    wanted = [tuple(map(plain, row(variable))) for variable in VARIABLES]
    assert table(README.read_text()) == wanted


def test_every_variable_that_the_readme_names_exists() -> None:
    known = {name for variable in VARIABLES for name in (variable.name, variable.also)}
    named = set(re.findall(r"\bVAULT_[A-Z_]*[A-Z]\b", README.read_text()))
    assert named <= known


def test_the_readmes_table_of_errors_has_every_error() -> None:
    text = README.read_text()
    missing = [name for name in errors.__all__ if f"`{name}`" not in text]
    assert [name for name in missing if name not in ("VaultMiddlewareError", "SecretError")] == []


def test_the_readme_links_to_nothing_that_is_not_there() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
