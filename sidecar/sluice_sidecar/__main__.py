"""The command `sluice`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, TextIO, TypeVar
from urllib.parse import urlencode

from sluice import __version__
from sluice.config.document import to_manifest
from sluice.config.merge import conflicts
from sluice.config.render import document_text, limits_config_map, limits_text
from sluice.config.types import ProviderLimits
from sluice.core.keys import Scope
from sluice.errors import InvalidDocument, SluiceError
from sluice.schema import yamltext
from sluice_sidecar import logs, settings, status_table, watch
from sluice_sidecar.envoy_files import EnvoyFiles
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.http_client import fetch
from sluice_sidecar.settings import Failed, LogFormat, RunSettings, UsageSource

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2

WATCH_SECONDS: Final = 1.0
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
  sluice render -f limits.yaml                the ConfigMap that the operator would write
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
        for an Envoy (or any client of envoy.service.ratelimit.v3) that you run yourself"""

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
Prints the ConfigMap of limits that the operator would write for these documents, one for each metadata.namespace,
without asking a cluster: so each stands alone, with no owners, and is its first generation. Of documents that
contradict each other the operator would take the oldest; here they are mistakes."""

RENDER_EXAMPLES = """\
examples:
  sluice render -f limits.yaml
  sluice render -f limits/ -f more.yaml       folders and files, taken together"""

ENVOY_EXAMPLES = """\
examples:
  sluice envoy-config -f limits.yaml --grpc 127.0.0.1:9000 > envoy.json && envoy -c envoy.json
        everything in one file; with a gate at `sluice run -f limits.yaml --grpc 127.0.0.1:9000`
  sluice envoy-config -f limits.yaml --socket /run/sluice/gate.sock --xds /run/sluice/xds > /run/sluice/envoy.json
        an Envoy that follows the limits; `sluice run ... --xds /run/sluice/xds` keeps the files up to date"""


def main() -> None:
    """Run the command line, and end with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Returns the exit code; argparse itself ends with 0 for `--help` and 2 for bad arguments."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of the command that was meant
    try:
        return int(options.command(options))
    except InvalidDocument as error:
        for problem in error.problems:
            _complain(str(problem), options)
        return BAD_INPUT
    except BrokenPipeError:  # `sluice status | head`: nobody reads on, and Python must not try to write on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (SluiceError, OSError) as error:
        _complain(f"sluice: {error}", options)
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _say(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream, flush=True)


def _complain(text: str, options: argparse.Namespace) -> None:
    """A sentence for whoever started the command; in the log where the log is for machines."""
    if getattr(options, "log_format", None) is LogFormat.JSON:
        logging.getLogger("sluice").error("%s", text)
    else:
        _say(text, sys.stderr)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC has to say we say ourselves, in our log's form
    from sluice_sidecar.app import Sidecar  # noqa: PLC0415 - the other commands need none of its servers

    if not (options.envoy or options.socket or options.grpc):
        options.error("say how Envoy reaches the gate: --envoy (run one here), --socket PATH or --grpc ADDRESS")
    if not options.envoy and (options.listen or options.envoy_binary):
        options.error("--listen and --envoy-binary are about the Envoy of --envoy, and there is none")
    if options.ca_bundle and not (options.envoy or options.xds):
        options.error("--ca-bundle is written into Envoy's files: give --envoy or --xds as well")
    logs.set_up(options.log_format)
    run_settings = RunSettings(
        files=tuple(options.file),
        wait_for_limits=options.wait_for_limits,
        socket=options.socket,
        grpc=options.grpc,
        envoy=options.envoy,
        envoy_binary=options.envoy_binary or os.environ.get("SLUICE_ENVOY"),
        listen=options.listen or settings.LISTEN,
        xds=options.xds,
        admin=options.admin,
        lease=options.lease,
        max_keys=options.max_keys,
        grace=options.grace,
        usage_source=options.usage_source,
        usage_headers=options.usage_headers,
        ca_bundle=options.ca_bundle,
    )
    return asyncio.run(Sidecar(run_settings, os.environ).run())


def _check(options: argparse.Namespace) -> int:
    files = (options.file or []) + options.files
    if not files:
        options.error("name the limits documents, or folders of them: -f FILE")
    configuration = watch.configuration(watch.read(files))
    for document in configuration.documents:
        for line in _described(document):
            _say(line)
    if not configuration.documents:
        _say("no limits: the files say so")
    return OK


def _status(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("provider", "scope", "subject")}
    selectors = {name: value for name, value in given.items() if value is not None}
    query = "/status" + (f"?{urlencode(selectors)}" if selectors else "")
    while True:
        text = _answer(options.admin, query)
        shown = text if options.output == "json" else status_table.table(json.loads(text))
        if options.watch and sys.stdout.isatty() and options.output == "table":
            shown = f"\x1b[H\x1b[2J{shown}"
        _say(shown)
        if not options.watch:
            return OK
        try:
            threading.Event().wait(WATCH_SECONDS)
        except KeyboardInterrupt:
            return OK


def _answer(admin: settings.Address, query: str) -> str:
    try:
        code, text = fetch(admin, query)
    except OSError as error:
        raise Failed(
            f"no gate answers at {settings.shown([admin])}: {error} (sluice run, or --admin ADDRESS)"
        ) from None
    if code != 200:
        raise Failed(f"the gate at {settings.shown([admin])} answers {code}: {text.strip()}")
    return text


def _envoy_config(options: argparse.Namespace) -> int:
    configuration = watch.configuration(watch.read(options.file))
    files = EnvoyFiles(
        EnvoySettings(
            gate=options.grpc or options.socket or GATE,
            admin_socket=options.envoy_admin,
            listen=options.listen or settings.LISTEN,
            xds_folder=options.xds,
            usage=options.usage_source,
            observed_headers=options.usage_headers,
            ca_bundle=options.ca_bundle,
        )
    )
    text = files.bootstrap(configuration)
    files.write(configuration)
    _say(text)
    return OK


def _render(options: argparse.Namespace) -> int:
    namespaces: dict[str, list[ProviderLimits]] = {}
    for document in watch.documents(watch.read(options.file)):
        namespaces.setdefault(document.namespace, []).append(document)
    if problems := [problem for documents in namespaces.values() for problem in conflicts(documents)]:
        raise InvalidDocument(problems)
    texts = {
        namespace: limits_text((document.name, document_text(document)) for document in documents)
        for namespace, documents in sorted(namespaces.items())
    } or {"": limits_text([])}
    config_maps = (limits_config_map(text, namespace=namespace) for namespace, text in texts.items())
    _say(yamltext.write(config_maps).rstrip("\n"))
    return OK


def _described(document: ProviderLimits) -> Iterator[str]:
    """A document in the words of the document: the provider on one line, and each entry on a line of its own."""
    manifest = to_manifest(document)["spec"]
    yield f"{document.source}: {document.name}: provider {document.provider}, {document.api} at {document.upstream}"
    yield f"  failurePolicy {document.failure_policy}" + (", no limits" if not manifest["limits"] else "")
    for entry in manifest["limits"]:
        ((kind, value),) = entry.pop("subject").items()
        source = kind if value is True else f"{kind} {value}"
        match = "".join(f", {what} {' '.join(patterns)}" for what, patterns in entry.pop("match", {}).items())
        scope = entry.pop("scope")
        yield f"  {scope} ({source}{match}): " + ", ".join(f"{name} {value}" for name, value in entry.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluice", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, action: Callable[[argparse.Namespace], int], summary: str, text: str, examples: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=action, error=added.error)
        return added

    _run_options(command("run", _run, "run the gate, and with --envoy its Envoy", RUN, RUN_EXAMPLES))
    check = command("check", _check, "check limits documents", "Checks limits documents.", CHECK_EXAMPLES)
    _file_option(check, required=False)
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the same as -f FILE")
    _file_option(
        command("render", _render, "print the ConfigMap that the operator would write", RENDER, RENDER_EXAMPLES)
    )
    _status_options(
        command("status", _status, "what a running gate has counted", "Asks a running gate.", STATUS_EXAMPLES)
    )
    text = "Prints a complete Envoy bootstrap as JSON, for the pinned Envoy version (1.40)."
    _envoy_options(command("envoy-config", _envoy_config, "print Envoy's configuration", text, ENVOY_EXAMPLES))
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    _file_option(parser)
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


def _envoy_options(parser: argparse.ArgumentParser) -> None:
    _file_option(parser)
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
        help="response headers that tell the tokens a call used, beside x-usage-total-tokens and Bedrock's",
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


if __name__ == "__main__":
    main()
