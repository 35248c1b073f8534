"""The command `sluice`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TextIO
from urllib.parse import urlencode

from sluice.config.document import to_manifest
from sluice.config.merge import Provider, conflicts
from sluice.config.render import document_text, envoy_config_map, limits_config_map, limits_text
from sluice.config.types import ProviderLimits
from sluice.errors import InvalidDocument, SluiceError
from sluice.schema import yamltext
from sluice_sidecar import logs, provider_table, settings, status_table, watch
from sluice_sidecar.command_line import GATE, Command, parser_of
from sluice_sidecar.envoy_files import EnvoyFiles, gateway_bootstrap
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.http_client import fetch
from sluice_sidecar.settings import Failed, LogFormat, RunSettings, Start

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2

WATCH_SECONDS: Final = 1.0


def main() -> None:
    """Run the command line, and end with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Returns the exit code; argparse itself ends with 0 for `--help` and 2 for bad arguments."""
    options, unknown = parser_of(COMMANDS).parse_known_args(arguments)
    if unknown:
        options.error(f"unrecognized arguments: {_shown(unknown)}")  # with the usage of the command that was meant
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


def _shown(unknown: Sequence[str]) -> str:
    """The arguments, without what may be a secret: the value of an option that nobody knows, a login in a URL."""
    options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    return " ".join(options or [re.sub("://.*@", "://…@", word) for word in unknown])


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
    if options.start and not options.state_dir:
        options.error("--start is about the counts of --state-dir, and there is none")
    _check_store(options)
    logs.set_up(options.log_format)
    return asyncio.run(Sidecar(run_settings(options), os.environ).run())


def _check_store(options: argparse.Namespace) -> None:
    """End with a complaint if the options about the store do not fit each other or the rest."""
    about = ("password_file", "prefix", "ca_bundle", "gates")
    given = [f"--store-{name.replace('_', '-')}" for name in about if getattr(options, f"store_{name}") is not None]
    if options.store is None:
        if given:
            options.error(f"{given[0]} is about the store of --store, and there is none")
    elif options.state_dir:
        options.error(
            "--state-dir cannot go with --store: the store keeps the counts, whatever gate ends; leave it out"
        )
    elif options.store_ca_bundle and not options.store.tls:
        options.error("--store-ca-bundle is about TLS, and the address of --store says none: begin it with rediss")


def run_settings(options: argparse.Namespace) -> RunSettings:
    """What `sluice run` was told, defaults filled in."""
    return RunSettings(
        files=tuple(options.file),
        profiles=options.profiles,
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
        state_dir=options.state_dir,
        start=options.start or Start.FULL,
        store=options.store,
        store_password_file=options.store_password_file,
        store_prefix=options.store_prefix or settings.STORE_PREFIX,
        store_ca=options.store_ca_bundle,
        store_gates=options.store_gates or 1,
        grace=options.grace,
        usage_source=options.usage_source,
        usage_headers=options.usage_headers,
        ca_bundle=options.ca_bundle,
    )


def _check(options: argparse.Namespace) -> int:
    files = (options.file or []) + options.files
    if not files:
        options.error("name the limits documents, or folders of them: -f FILE")
    catalog = watch.catalog(options.profiles)
    configuration = watch.configuration(watch.read(files), catalog)
    for document in configuration.documents:
        provider = configuration.providers[document.provider]
        for line in _described(document, provider, catalog.files.get(provider.name)):
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
    configuration = watch.configuration(watch.read(options.file), watch.catalog(options.profiles))
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
    bootstrap = gateway_bootstrap()
    config_maps = (
        each
        for namespace, text in texts.items()
        for each in (limits_config_map(text, namespace=namespace), envoy_config_map(bootstrap, namespace=namespace))
    )
    _say(yamltext.write(config_maps).rstrip("\n"))
    return OK


def _providers(options: argparse.Namespace) -> int:
    catalog = watch.catalog(options.profiles)
    names = tuple(dict.fromkeys(options.providers)) or catalog.names
    for name in names:
        if name not in catalog.names:
            options.error(f"there is no profile of {name}: known are {', '.join(catalog.names)}")
    output = options.output or ("yaml" if options.providers else "table")
    if output == "table":
        _say(provider_table.table(map(catalog.profile, names)))
    elif output == "json":
        _say(json.dumps([catalog.tree(name) for name in names], indent=2))
    else:
        _say(yamltext.write(map(catalog.tree, names)).rstrip("\n"))
    return OK


def _described(document: ProviderLimits, provider: Provider, file: str | None) -> Iterator[str]:
    """A document in the words of the document: the provider on one line, and each entry on a line of its own.

    `file`: the profile of one's own that holds for the provider, if there is one.
    """
    manifest = to_manifest(document)["spec"]
    yield f"{document.source}: {document.name}: provider {document.provider}, {document.api} at {document.upstream}"
    policies = [
        f"failurePolicy {document.failure_policy}",
        f"streamUsage {document.stream_usage}",
        f"sharing {document.sharing}",
        f"estimation.mode {provider.estimation.mode}",
        *([f"profile from {file}"] if file else []),
        *(["profile from spec.profile"] if document.profile else []),
        *(["no limits"] if not manifest["limits"] else []),
    ]
    yield f"  {', '.join(policies)}"
    for entry in manifest["limits"]:
        ((kind, value),) = entry.pop("subject").items()
        source = kind if value is True else f"{kind} {value}"
        match = "".join(f", {what} {' '.join(patterns)}" for what, patterns in entry.pop("match", {}).items())
        scope = entry.pop("scope")
        yield f"  {scope} ({source}{match}): " + ", ".join(f"{name} {value}" for name, value in entry.items())


COMMANDS: Final[Mapping[str, Command]] = {
    "run": _run,
    "check": _check,
    "render": _render,
    "status": _status,
    "providers": _providers,
    "envoy-config": _envoy_config,
}


if __name__ == "__main__":
    main()
