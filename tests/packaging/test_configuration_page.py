"""The page on configuration: its table is made from the declarations, and what it shows works.

``python -m tests.packaging.test_configuration_page`` writes the table anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vault_middleware import SecretConfig
from vault_middleware.config import VARIABLES, Variable
from vault_middleware.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

_START, _END = "<!-- configuration -->\n", "<!-- /configuration -->"


def rendered() -> str:
    """The table, as the declarations have it."""
    lines = ["| variable | default | meaning |", "|---|---|---|", *map(_row, VARIABLES)]
    return "\n".join(lines) + "\n"


def _row(variable: Variable) -> str:
    name = f"`{variable.name}`" + (f" / `{variable.also}`" if variable.also else "")
    meaning = variable.meaning.replace("|", "\\|")
    return f"| {name} | {f'`{variable.default}`' if _is_value(variable) else variable.default} | {meaning} |"


def _is_value(variable: Variable) -> bool:
    """Whether the default is a value that the variable could be set to, and not words about it."""
    try:
        return bool(variable.default) and variable.parse(variable.default) == getattr(SecretConfig(), variable.field)
    except ValueError:
        return False


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_table_is_what_the_declarations_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    between = text.partition(_START)[2].partition(_END)[0]
    assert between == rendered(), "run python -m tests.packaging.test_configuration_page"


def test_every_variable_that_the_page_names_exists() -> None:
    known = {name for variable in VARIABLES for name in (variable.name, variable.also)} | {"VAULT_PORT"}
    named = set(re.findall(r"\bVAULT_[A-Z_]*[A-Z]\b", PAGE.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("block", blocks("sh"))
def test_every_environment_that_is_shown_is_accepted(block: str) -> None:
    environ = dict(line.split("=", 1) for line in block.splitlines())
    config = SecretConfig.from_env(environ)
    assert {variable.name for variable in VARIABLES if variable.name in environ} == set(environ)
    assert config.auth_method in ("kubernetes", "jwt", "approle", "token", "proxy")


def test_the_message_that_is_shown_is_the_one_that_comes() -> None:
    with pytest.raises(ConfigurationError) as wrong:
        SecretConfig.from_env({"VAULT_ADDR": "http://vault:8200/v1", "VAULT_CACHE_TTL": "soon"})
    assert f"ConfigurationError: {wrong.value}\n" in blocks("text")


if __name__ == "__main__":
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(_START)
    PAGE.write_text(f"{head}{_START}{rendered()}{_END}{rest.partition(_END)[2]}", encoding="utf-8")
