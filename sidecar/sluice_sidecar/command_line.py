"""What the command line may say: the commands of `sluice`, their options, and what their `--help` tells."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from sluice import __version__
from sluice.core.keys import Scope
from sluice_sidecar import settings
from sluice_sidecar.settings import LogFormat, Start, UsageSource
from sluice_sidecar.stores.address import FORMS, PASSWORD_VARIABLE, StoreAddress

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

Command: TypeAlias = Callable[[argparse.Namespace], int]
"""Carries a command out, and returns the exit code."""

GATE: Final = Path("/run/sluice/gate.sock")
"""Where the gate of an Envoy in another container serves, unless it is told otherwise."""

ABOUT = """\
Sluice gates calls to LLM providers: it admits, queues and refuses them by the limits you write down,
and commits the tokens they really used. Envoy carries the calls; Sluice tells Envoy what to do."""

EXAMPLES = """\
examples:
  sluice check -f limits.yaml                 is every document right? what would be in force?
  sluice run -f limits.yaml --envoy           gate and Envoy; applications call http://127.0.0.1:10000/openai/v1
  sluice status --watch                       who has used what, as it changes
  sluice render -f limits.yaml                the ConfigMaps that the operator would write
  sluice providers                            whose APIs are known, and what of them
  sluice envoy-config -f limits.yaml          the configuration for an Envoy of your own

exit codes: 0 done; 1 failed (a port in use, no Envoy, no gate to ask); 2 bad input (arguments or limits)

`sluice COMMAND --help` tells the rest. docs/operations.md: endpoints, metrics, signals."""

RUN = """\
Runs the gate until SIGTERM or SIGINT; then calls under way have the grace period to end, and a second signal ends
everything at once. The limits files are followed: a good change is live within a second, and of a bad one every
mistake is logged and the last good limits stay."""

RUN_EXAMPLES = """\
examples:
  sluice run -f limits.yaml --envoy
        try it: calls at http://127.0.0.1:10000/<provider>/..., sluice status beside it
  sluice run -f /etc/sluice/limits.yaml --wait-for-limits --socket /run/sluice/gate.sock --log-format json
        in a pod: limits from a ConfigMap that may come after the pod, for an Envoy in another container
  sluice run -f limits.yaml --grpc 127.0.0.1:9000
        for an Envoy (or any client of envoy.service.ratelimit.v3) that you run yourself
  sluice run -f limits.yaml --envoy --store redis://redis.team-a:6379 --store-prefix team-a --store-gates 2
        one of two gates that keep the limits together, each half of them while Redis is away"""

CHECK_EXAMPLES = """\
examples:
  sluice check limits.yaml
  sluice check -f limits/ -f more.yaml        folders and files, checked together as they would be in force together

Prints every mistake on a line of its own and ends with 2; else what each document puts in force, a line an entry."""

STATUS_EXAMPLES = """\
examples:
  sluice status                               a table of the fullest buckets, and totals
  sluice status --watch                       again every second, until Ctrl-C
  sluice status --provider openai --scope User -o json
  sluice status --admin /run/sluice/admin.sock"""

RENDER = """\
Prints the ConfigMaps that the operator would write for these documents, for each metadata.namespace the limits and the
Envoy bootstrap of the gateway, without asking a cluster: so they have no owners, and are a first generation. Of
documents that contradict each other the operator would take the oldest; here they are mistakes."""

RENDER_EXAMPLES = """\
examples:
  sluice render -f limits.yaml
  sluice render -f limits/ -f more.yaml       folders and files, taken together"""

PROVIDERS = """\
Prints what is known of each provider: a table of all, or the whole profile of some, with its sources.
docs/providers.md says what each column and field means."""

PROVIDERS_EXAMPLES = """\
examples:
  sluice providers                            a line for each provider
  sluice providers openai                     its whole profile, as a file of your own could say it
  sluice providers --profiles profiles/ -o json | jq '.[].provider'"""

ENVOY_EXAMPLES = """\
examples:
  sluice envoy-config -f limits.yaml --grpc 127.0.0.1:9000 > envoy.json && envoy -c envoy.json
        everything in one file; with a gate at `sluice run -f limits.yaml --grpc 127.0.0.1:9000`
  sluice envoy-config -f limits.yaml --socket /run/sluice/gate.sock --xds /run/sluice/xds > /run/sluice/envoy.json
        an Envoy that follows the limits; `sluice run ... --xds /run/sluice/xds` keeps the files up to date"""


def parser_of(actions: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser; what it reads has the action of its command as `command`, and `error` to complain in its name."""
    parser = argparse.ArgumentParser(
        prog="sluice", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, text: str, examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=actions[name], error=added.error)
        return added

    _run_options(command("run", "run the gate, and with --envoy its Envoy", RUN, RUN_EXAMPLES))
    check = command("check", "check limits documents", "Checks limits documents.", CHECK_EXAMPLES)
    _file_option(check, required=False)
    _profiles_option(check)
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the same as -f FILE")
    _file_option(command("render", "print the ConfigMaps that the operator would write", RENDER, RENDER_EXAMPLES))
    _status_options(command("status", "what a running gate has counted", "Asks a running gate.", STATUS_EXAMPLES))
    _providers_options(command("providers", "whose APIs are known", PROVIDERS, PROVIDERS_EXAMPLES))
    text = "Prints a complete Envoy bootstrap as JSON, for the pinned Envoy version (1.40)."
    _envoy_options(command("envoy-config", "print Envoy's configuration", text, ENVOY_EXAMPLES))
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    _file_option(parser)
    _profiles_option(parser)
    parser.add_argument(
        "--wait-for-limits",
        action="store_true",
        help="at the start, wait until the limits are there and right: /readyz says no meanwhile (default: end with 2)",
    )
    serving = parser.add_argument_group("where")
    _gate_options(serving, "the Unix socket on which Envoy asks the gate (with --envoy: one in a private folder)")
    serving.add_argument(
        "--admin",
        type=_checked(settings.address),
        default=settings.ADMIN,
        metavar="ADDRESS",
        help="serve /healthz, /readyz, /status, /metrics there: IP:PORT, or a socket's path (default: %(default)s)",
    )
    envoy = parser.add_argument_group("Envoy")
    envoy.add_argument(
        "--envoy", action="store_true", help="run Envoy as a child, with a configuration from the limits"
    )
    envoy.add_argument(
        "--envoy-binary", metavar="PATH", help="the Envoy to run (default: $SLUICE_ENVOY, or `envoy` in PATH)"
    )
    _listen_option(envoy)
    envoy.add_argument(
        "--xds",
        type=_path,
        metavar="DIR",
        help="keep the files there that an Envoy follows (see sluice envoy-config --xds)",
    )
    _provider_options(envoy)
    counts = parser.add_argument_group("counts")
    counts.add_argument(
        "--state-dir",
        type=_path,
        metavar="DIR",
        help="save what is counted there, once a second and at the end, and go on from it at the next start (default:"
        " counts are in memory alone)",
    )
    counts.add_argument(
        "--start",
        type=_one_of(Start),
        metavar=_words(Start),
        help="where a gate has counted in --state-dir before and its counts are lost: begin with all that the limits"
        " allow, or as if they had been used up evenly until then (default: full)",
    )
    _store_options(parser.add_argument_group("a store that gates share, so that they count together"))
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--lease",
        type=_checked(settings.lease),
        default=settings.LEASE,
        metavar="TIME",
        help="an admitted call that Envoy does not begin within this time is given up (default: 2s)",
    )
    bounds.add_argument(
        "--max-keys",
        type=_checked(settings.count),
        default=settings.MAX_KEYS,
        metavar="N",
        help="users, orgs and projects counted apart; newcomers past that share one bucket (default: %(default)s)",
    )
    bounds.add_argument(
        "--grace",
        type=_checked(settings.duration),
        default=settings.GRACE,
        metavar="TIME",
        help="how long calls may go on after the first signal; the program ends within it (default: 30s)",
    )
    parser.add_argument(
        "--log-format",
        type=_one_of(LogFormat),
        metavar=_words(LogFormat),
        default=LogFormat.TEXT,
        help="how the log is written, to standard error (default: %(default)s)",
    )


def _store_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--store",
        type=_checked(StoreAddress.parse),
        metavar="ADDRESS",
        help=f"Redis or Valkey: {FORMS}; USER@ before the host if need be (default: this gate counts alone)",
    )
    parser.add_argument(
        "--store-password-file",
        type=_path,
        metavar="FILE",
        help=f"holds the password, and is read at every connection (default: the variable {PASSWORD_VARIABLE}, if set)",
    )
    parser.add_argument(
        "--store-prefix",
        type=_checked(settings.store_prefix),
        metavar="NAME",
        help=f"begins the name of every key: gates with another one count apart (default: {settings.STORE_PREFIX})",
    )
    parser.add_argument(
        "--store-ca-bundle",
        type=_path,
        metavar="FILE",
        help="the certificates by which the store is trusted, with TLS (default: the system's)",
    )
    parser.add_argument(
        "--store-gates",
        type=_checked(settings.count),
        metavar="N",
        help="how many gates there are: each enforces its share of the limits while the store was never reached"
        " (default: 1)",
    )


def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin",
        type=_checked(settings.address),
        default=settings.ADMIN,
        metavar="ADDRESS",
        help="the gate's --admin (default: %(default)s)",
    )
    parser.add_argument("--provider", help="only the buckets of this provider")
    parser.add_argument("--scope", choices=tuple(map(str, Scope)), help="only this scope")
    parser.add_argument("--subject", help="only this user, org or project")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="how to print (default: %(default)s)"
    )


def _providers_options(parser: argparse.ArgumentParser) -> None:
    _profiles_option(parser)
    parser.add_argument("providers", nargs="*", metavar="PROVIDER", help="print the whole profile of these")
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "yaml", "json"),
        help="how to print (default: a table of all, YAML of those that are named)",
    )


def _envoy_options(parser: argparse.ArgumentParser) -> None:
    _file_option(parser)
    _profiles_option(parser)
    _gate_options(parser.add_mutually_exclusive_group(), f"the Unix socket of the gate (default: {GATE})")
    _listen_option(parser)
    parser.add_argument(
        "--envoy-admin",
        type=_checked(settings.socket_path),
        default=Path("/run/sluice/envoy.sock"),
        metavar="PATH",
        help="Envoy's own admin interface, a Unix socket (default: %(default)s)",
    )
    parser.add_argument(
        "--xds",
        type=_path,
        metavar="DIR",
        help="write routes and clusters as files there, and a bootstrap that follows them",
    )
    _provider_options(parser)


def _file_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        action="append",
        required=required,
        metavar="FILE",
        help="a limits document, or a folder of them (*.yaml, *.yml, *.json); may be given more than once",
    )


def _profiles_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="DIR",
        help="a folder of provider profiles (*.yaml, *.yml, *.json), which go before the built-in ones of their"
        " providers; read at the start (see docs/providers.md)",
    )


def _gate_options(parser: argparse._ActionsContainer, socket: str) -> None:
    parser.add_argument("--socket", type=_checked(settings.socket_path), metavar="PATH", help=socket)
    parser.add_argument(
        "--grpc",
        type=_checked(settings.tcp_address),
        metavar="ADDRESS",
        help="a TCP address for the same, as 127.0.0.1:9000: keep it on loopback, callers are not told apart",
    )


def _listen_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--listen",
        type=_checked(settings.tcp_address),
        metavar="ADDRESS",
        help=f"where Envoy takes the applications' calls (default: {settings.LISTEN})",
    )


def _provider_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--ca-bundle",
        type=_path,
        metavar="FILE",
        help="the certificates by which Envoy trusts providers (default: the system's)",
    )
    parser.add_argument(
        "--usage-source",
        type=_one_of(UsageSource),
        metavar=_words(UsageSource),
        default=UsageSource.METADATA,
        help="who reads the tokens used from an answer: Envoy, or the gate from the body that Envoy sends it, for an"
        " Envoy without ai_protocol_manager (default: %(default)s)",
    )
    parser.add_argument(
        "--usage-headers",
        type=_checked(settings.header_names),
        default=(),
        metavar="NAME,...",
        help="response headers that tell the tokens a call used, beside x-usage-total-tokens and those of the profile",
    )


def _path(text: str) -> Path:
    return Path(text).absolute()  # Envoy may run elsewhere


def _words(kind: type[StrEnum]) -> str:
    return "{" + ",".join(kind) + "}"


def _one_of(kind: type[E]) -> Callable[[str], E]:
    """A word of the enum; argparse's own `choices` would name the class in its complaint."""

    def converted(text: str) -> E:
        if text not in tuple(kind):
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(kind)}")
        return kind(text)

    return converted


def _checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """The converter with its complaint as argparse's own."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted
