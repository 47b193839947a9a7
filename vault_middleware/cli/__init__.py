"""The command ``vault-middleware``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import VaultMiddlewareError

__all__ = ["main"]

DEPLOYMENTS = ("namespace", "community", "root-auth")


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
        choices=DEPLOYMENTS,
        default="namespace",
        help="the secrets in a namespace (the default); in mounts that begin with its name; or with the log-in in the root",
    )
    doctor = commands.add_parser("doctor", help="find out what is wrong, from the pod outwards, and what mends it")
    _add_paths(doctor)
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.add_argument(
        "--no-leases", action="store_true", help="make no lease (and so no database user) for the check"
    )
    doctor.add_argument(
        "--processes", type=int, default=1, metavar="N", help="how many processes of the app there are, in all replicas"
    )
    doctor.add_argument("--kubernetes", metavar="URL", help="the cluster's API; found out inside a pod")
    policy = commands.add_parser("policy", help="write the least policy, or check a token against it")
    _add_paths(policy)
    policy.add_argument("--deployment", choices=DEPLOYMENTS, help="instead of asking the server, as the log-in does")
    policy.add_argument("--without-default", action="store_true", help="the role's tokens lack the default policy")
    policy.add_argument(
        "--check", action="store_true", help="compare it with what the token may do now; the status is 1 if they differ"
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except VaultMiddlewareError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="secret paths; without any, those of VAULT_PREFETCH or of the audit log",
    )
    parser.add_argument("--audit-log", metavar="FILE", help="the paths that the app really read, from its audit log")


def _run(options: argparse.Namespace) -> int:
    # Each command imports what it needs: the demo has an extra of its own.
    if options.command == "doctor":
        from .doctor import Doctor  # noqa: PLC0415

        return Doctor(
            paths=options.paths,
            audit_log=options.audit_log,
            leases=not options.no_leases,
            processes=max(1, options.processes),
            kubernetes=options.kubernetes,
        ).run(as_json=options.json)
    if options.command == "policy":
        from .policy import Policy  # noqa: PLC0415

        policy = Policy(
            paths=options.paths,
            audit_log=options.audit_log,
            deployment=options.deployment,
            without_default=options.without_default,
        )
        return policy.check() if options.check else policy.write()
    from .demo import Demo  # noqa: PLC0415

    return Demo(once=options.once, deployment=options.deployment).run()
