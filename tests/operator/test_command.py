"""The command `sluice-operator`: its arguments, its log, its health server, its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import aiohttp
import pytest

from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import grant, operating, sluice_operator


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "say which namespaces to serve"),
        (["--namespace", "a*"], "'a*' is not the name of a namespace"),
        (["--namespace", "a", "--all-namespaces"], "exclude each other"),
        (["--all-namespaces"], "say where the Lease is"),
        (["--namespace", "a", "--interval", "0s"], "'0s' is not a duration from 1s to 10m"),
        (["--namespace", "a", "--health", "8080"], "'8080' is not an address"),
        (["--namespace", "a", "--log-format", "xml"], "invalid choice: 'xml'"),
        (["--name", "a"], "unrecognized arguments: --name a"),
    ],
)
async def test_bad_arguments_end_with_2_and_a_sentence(arguments: list[str], complaint: str) -> None:
    ended = await sluice_operator(*arguments)
    assert (ended.code, complaint in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(("flag", "read"), [([], "by-variable"), (["--kubeconfig", "by-flag"], "by-flag")])
async def test_a_variable_stands_for_a_flag_and_the_flag_wins(flag: list[str], read: str) -> None:
    ended = await sluice_operator("--namespace", "a", *flag, SLUICE_KUBECONFIG="by-variable")
    assert (ended.code, f"{read}: cannot be read" in ended.err) == (1, True), ended.err


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [([], "'b*' is not the name of a namespace"), (["--all-namespaces"], "say where the Lease is")],
)
async def test_namespaces_in_the_environment_have_commas_between_and_do_not_add_up_with_flags(
    flag: list[str], complaint: str
) -> None:
    ended = await sluice_operator(*flag, SLUICE_NAMESPACE="a, b*")
    assert (ended.code, complaint in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("variable", ["SLUICE_LEADER_ELECTION", "SLUICE_ALL_NAMESPACES"])
async def test_a_switch_in_the_environment_is_true_or_false(variable: str) -> None:
    ended = await sluice_operator("--namespace", "a", **{variable: "perhaps"})
    assert (ended.code, f"{variable} is 'perhaps': write true or false" in ended.err) == (2, True), ended.err


async def test_without_a_cluster_it_ends_with_1_and_says_how_to_name_one(tmp_path: Path) -> None:
    ended = await sluice_operator("--namespace", "a", HOME=str(tmp_path), KUBECONFIG="", KUBERNETES_SERVICE_HOST="")
    assert (ended.code, "--kubeconfig FILE" in ended.err) == (1, True), ended.err


async def test_a_health_port_in_use_ends_it_with_1(control_plane: ControlPlane, namespace: str) -> None:
    async with operating(control_plane.admin, "-n", namespace) as operator:
        address = (await operator.line("health at")).rpartition(" ")[2]
        ended = await sluice_operator("--kubeconfig", control_plane.admin, "-n", namespace, "--health", address)
    assert (ended.code, f"--health {address}: cannot be served" in ended.err) == (1, True), ended.err


async def test_it_tells_of_its_health_and_counts_what_it_does(control_plane: ControlPlane, namespace: str) -> None:
    async with operating(control_plane.admin, "-n", namespace) as operator:
        await operator.line("serving")
        assert (await operator.get("/healthz"))[0] == 200
        assert (await operator.get("/readyz"))[0] in {200, 503}
        status, metrics = await operator.get("/metrics")
        assert (status, "sluice_operator_leads 1.0" in metrics) == (200, True)
        assert await operator.end() == 0


async def test_metrics_are_served_apart_where_they_have_an_address(control_plane: ControlPlane, namespace: str) -> None:
    async with operating(control_plane.admin, "-n", namespace, "--metrics", "127.0.0.1:0") as operator:
        assert (await operator.get("/metrics"))[0] == 404
        apart = re.search(r"health at \S+ and (\S+)", await operator.line("health at"))
        assert apart is not None
        async with aiohttp.ClientSession() as client:
            answers = [await client.get(f"http://{apart.group(1)}{path}") for path in ("/metrics", "/healthz")]
        assert [answer.status for answer in answers] == [200, 404]


async def test_a_log_for_machines_is_a_json_object_a_line(control_plane: ControlPlane, namespace: str) -> None:
    async with operating(control_plane.admin, "-n", namespace, "--log-format", "json") as operator:
        await operator.line("serving")
        await operator.end()
        lines = [json.loads(line) for line in operator.lines]
    assert [line["message"].split()[0] for line in lines] == ["serving", "stopping"]
    assert {line["level"] for line in lines} == {"info"}


async def test_it_says_which_right_is_missing_and_goes_on_once_it_is_given(
    control_plane: ControlPlane, namespace: str
) -> None:
    account = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:sluice-operator")
    async with operating(account, "-n", namespace) as operator:
        line = await operator.line("may not")
        assert f"in the namespace {namespace}: a Role has to allow it, as examples/operator.yaml shows" in line
        grant(control_plane, namespace)
        await operator.line("over: nothing can be watched: may not list providerlimits")
        assert await operator.end() == 0


async def test_without_an_api_server_it_says_so_waits_and_ends_when_told(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    config = json.loads(control_plane.admin.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    away = tmp_path / "kubeconfig"
    away.write_text(json.dumps(config))
    async with operating(away, "-n", "team-a") as operator:
        await operator.line("nothing can be watched: the API server cannot be reached at https://127.0.0.1:1 (")
        assert (await operator.get("/healthz"))[0] == 200
        assert (await operator.get("/readyz"))[0] == 503
        assert await operator.end() == 0


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "{clusters: 3, contexts: 4, users: [], current-context: x}"])
async def test_a_file_that_is_no_kubeconfig_ends_it_with_1_and_a_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    ended = await sluice_operator("--namespace", "a", "--kubeconfig", file)
    assert (ended.code, f"{file}: is not a kubeconfig" in ended.err, "Traceback" in ended.err) == (1, True, False)


@pytest.mark.parametrize(("flag", "namespaced"), [("--namespace", True), ("--all-namespaces", False)])
async def test_it_names_the_example_with_the_rights_that_are_missing(
    control_plane: ControlPlane, namespace: str, flag: str, namespaced: bool
) -> None:
    account = control_plane.kubeconfig(f"system:serviceaccount:{namespace}:sluice-operator")
    arguments = (flag, namespace) if namespaced else (flag, "--lease-namespace", namespace)
    example = "operator.yaml" if namespaced else "operator-all-namespaces.yaml"
    async with operating(account, *arguments, alone=False) as operator:
        line = await operator.line("may not list providerlimits")
        assert f"Role has to allow it, as examples/{example} shows" in line
        assert await operator.end() == 0


async def test_a_namespace_that_is_not_there_is_named(control_plane: ControlPlane) -> None:
    async with operating(control_plane.admin, "-n", "nowhere", alone=False) as operator:
        await operator.line("cannot create leases in the namespace nowhere: it is not there")
        assert await operator.end() == 0
