"""The command ``vault-middleware``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import VaultMiddlewareError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="vault-middleware", description="Secrets of HashiCorp Vault and OpenBao for Python gateways."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="start real servers and show the whole life of a secret")
    demo.add_argument(
        "--once", action="store_true", help="end by itself; the exit status says whether all of it happened"
    )
    demo.add_argument(
        "--deployment",
        choices=("namespace", "community", "root-auth"),
        default="namespace",
        help="the secrets in a namespace (the default); in mounts that begin with its name; or with the log-in in the root",
    )
    options = parser.parse_args(arguments)
    from .demo import Demo  # noqa: PLC0415 (it needs the demo extra)

    try:
        return Demo(once=options.once, deployment=options.deployment).run()
    except VaultMiddlewareError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
