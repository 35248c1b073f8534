"""The command `sluice-operator`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from sluice import __version__
from sluice.errors import SluiceError
from sluice_operator import logs, settings
from sluice_operator.settings import LogFormat, Settings

T = TypeVar("T")

FAILED: Final = 1
FLAGS: Final = (
    "--kubeconfig", "--interval", "--lease-namespace", "--identity",
    "--health", "--metrics", "--log-format", "--log-level",
)  # fmt: skip
"""Those that a variable stands for, word for word."""
WHERE: Final = ("-n", "--namespace", "--all-namespaces")
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

ABOUT = """\
Turns the ProviderLimits objects of a namespace into the ConfigMap that its gates follow, and shows in the objects'
status what the gates do."""

EPILOG = """\
examples:
  sluice-operator                                        in a pod: serves the pod's own namespace
  sluice-operator --namespace team-a --namespace team-b  serves these two
  sluice-operator --namespace team-a --kubeconfig ~/.kube/config --no-leader-election --health 127.0.0.1:8080
                                                         on a desk, for one namespace

Every flag has a variable: --log-format is SLUICE_LOG_FORMAT. A flag wins over it. SLUICE_NAMESPACE takes names with
commas between them, SLUICE_ALL_NAMESPACES and SLUICE_LEADER_ELECTION take true or false.

exit codes: 0 told to stop; 1 failed (a port in use, no cluster to speak of); 2 bad arguments

The rights that it needs are in examples/operator.yaml."""


def main() -> None:
    """Run the command line, and end with its exit code."""
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command line. Returns the exit code; argparse itself ends with 0 for `--help` and 2 for bad arguments."""
    parser = _parser()
    options = parser.parse_args([*_from_variables(environ, arguments, parser.error), *arguments])
    chosen = _settings(options, environ, parser.error)
    logs.set_up(LogFormat(options.log_format), LEVELS[options.log_level])
    from sluice_operator.app import Operator  # noqa: PLC0415 - `--help` needs none of its libraries

    try:
        return asyncio.run(Operator(chosen).run())
    except (SluiceError, OSError) as error:
        logging.getLogger("sluice_operator").error("%s", error)  # noqa: TRY400 - a sentence, not a traceback
        return FAILED


def _settings(options: argparse.Namespace, environ: Mapping[str, str], error: Callable[[str], NoReturn]) -> Settings:
    own = settings.own_namespace(environ)
    namespaces: tuple[str, ...] = tuple(dict.fromkeys(options.namespace or ()))
    if options.all_namespaces and namespaces:
        error("--all-namespaces and --namespace exclude each other")
    if not options.all_namespaces and not namespaces:
        if not own:
            error("say which namespaces to serve: --namespace NAME or --all-namespaces (in a pod: its own)")
        namespaces = (own,)
    lease_namespace = options.lease_namespace or own or (namespaces[0] if namespaces else "")
    if options.leader_election and not lease_namespace:
        error("say where the Lease is: --lease-namespace NAME, or --no-leader-election for an operator that is alone")
    return Settings(
        namespaces=namespaces,
        kubeconfig=options.kubeconfig or settings.kubeconfig(environ),
        identity=options.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}",
        lease_namespace=lease_namespace if options.leader_election else "",
        interval=options.interval,
        health=options.health,
        metrics=options.metrics,
    )


def _from_variables(
    environ: Mapping[str, str], arguments: Sequence[str], error: Callable[[str], NoReturn]
) -> Iterator[str]:
    """The flags that stand in the environment: they go before those of the command line, which win."""
    for flag in FLAGS:
        if value := environ.get(_variable(flag), ""):
            yield f"{flag}={value}"
    elects, all_namespaces = (_switch(environ, name, error) for name in ("LEADER_ELECTION", "ALL_NAMESPACES"))
    if elects is not None:
        yield "--leader-election" if elects else "--no-leader-election"
    if any(each.startswith(WHERE) for each in arguments):
        return  # namespaces do not add up
    if all_namespaces:
        yield "--all-namespaces"
    for name in environ.get("SLUICE_NAMESPACE", "").split(","):
        if name.strip():
            yield f"--namespace={name.strip()}"


def _switch(environ: Mapping[str, str], name: str, error: Callable[[str], NoReturn]) -> bool | None:
    """What a variable of two words says; None if it says nothing."""
    word = environ.get(f"SLUICE_{name}", "")
    if word not in {"", "true", "false"}:
        error(f"SLUICE_{name} is {word!r}: write true or false")
    return word == "true" if word else None


def _variable(flag: str) -> str:
    return "SLUICE_" + flag.removeprefix("--").replace("-", "_").upper()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluice-operator",
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sluice-operator {__version__}")
    _cluster_options(parser.add_argument_group("cluster"))
    _leader_options(parser.add_argument_group("more than one replica"))
    _serving_options(parser.add_argument_group("health and log"))
    return parser


def _cluster_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--namespace",
        type=_checked(settings.namespace),
        action="append",
        metavar="NAME",
        help="serve this namespace; may be given more than once (default: the pod's own)",
    )
    group.add_argument("--all-namespaces", action="store_true", help="serve every namespace: needs a ClusterRole")
    group.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="how to reach the cluster (default: as the pod that this is, else $KUBECONFIG or ~/.kube/config)",
    )
    group.add_argument(
        "--interval",
        type=_checked(settings.interval),
        default=settings.INTERVAL,
        metavar="TIME",
        help="between two looks at the gates (default: 5s)",
    )


def _leader_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--leader-election",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one of them leads, by a Lease; without it, this one is alone (default: with it)",
    )
    group.add_argument(
        "--lease-namespace",
        type=_checked(settings.namespace),
        metavar="NAME",
        help="where the Lease is (default: the pod's namespace, else the first that is served)",
    )
    group.add_argument(
        "--identity",
        type=_checked(settings.identity),
        metavar="NAME",
        help="its name in the Lease, and nobody else's (default: the host's, with a random number)",
    )


def _serving_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--health",
        type=_checked(settings.address),
        default=settings.HEALTH,
        metavar="IP:PORT",
        help="serve /healthz, /readyz and /metrics there (default: %(default)s)",
    )
    group.add_argument(
        "--metrics",
        type=_checked(settings.address),
        metavar="IP:PORT",
        help="serve /metrics there, and not beside the probes",
    )
    group.add_argument(
        "--log-format",
        choices=tuple(map(str, LogFormat)),
        default=str(LogFormat.TEXT),
        help="how the log is written, to standard error (default: %(default)s)",
    )
    group.add_argument("--log-level", choices=tuple(LEVELS), default="info", help="(default: %(default)s)")


def _checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """The converter with its complaint as argparse's own."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


if __name__ == "__main__":
    main()
