"""How a gate comes to its store: by every form of an address, past servers that are gone; what it says if it cannot.

Real are the servers and the network; a relay speaks TLS for them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from helpers.envoy import free_port, short_folder
from helpers.pki import Authority
from helpers.process import lasting_ports
from helpers.program import eventually
from helpers.redis import ADMIN, RedisServer, laid_out, running_redis
from helpers.redis_groups import BUS, SERVICE, RedisCluster, running_cluster, running_sentinel
from helpers.relay import behind_tls, plain_or_tls, relayed
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import Client, StoreError
from sluice_sidecar.stores.shared.connections import password_source
from sluice_sidecar.stores.shared.names import Keys
from sluice_sidecar.stores.shared.scripts import Scripts

KEYS = Keys("team", "openai", "gate")
BACK_SECONDS = 5
"""After which a store that is back is used again."""
SECRET = "the-password-of-the-store"
USERS = {"sluice": f"on >{SECRET} ~* &* +@all", "open": "on nopass ~* &* +@all"}

pytestmark = pytest.mark.timeout(90)  # a cluster takes seconds to start, on a machine that may be busy with others


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def client(address: str, password: str | Path | None = None, ca: Path | None = None) -> AsyncIterator[Client]:
    """A client as a gate makes it; a password in a `Path` is in that file."""
    source = password_source(password, {}) if isinstance(password, Path) else password and (lambda: str(password))
    made = Client(StoreAddress.parse(address), source or None, ca)
    try:
        yield made
    finally:
        await made.close()


async def beat(asked: Client) -> str:
    """Say that a gate lives, as it does each second; returns why that failed, if it did."""
    try:
        await asked.run(
            Scripts().beat, [KEYS.gates, KEYS.epoch, KEYS.recovery, KEYS.batch], ["gate", 3_000_000, "epoch", ""]
        )
    except StoreError as error:
        return str(error)
    return ""


async def told(address: str, password: str | Path | None = None, ca: Path | None = None) -> str:
    async with client(address, password, ca) as asked:
        return await beat(asked)


# -- every form of an address --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["redis://127.0.0.1:{port}", "redis://127.0.0.1:{port}/3", "unix://{socket}?db=1"])
async def test_one_server_is_found_by_its_port_its_database_and_its_socket(form: str, server: RedisServer) -> None:
    assert await told(form.format(port=server.port, socket=server.socket)) == ""


@pytest.mark.parametrize(("user", "password"), [("", SECRET), ("sluice@", SECRET), ("open@", None)])
async def test_a_user_may_be_named_and_may_have_no_password(user: str, password: str | None) -> None:
    async with running_redis(password=SECRET, users=USERS) as redis:
        assert await told(redis.url.replace("//", f"//{user}"), password) == ""


async def test_a_server_that_speaks_tls_is_trusted_by_the_given_certificates(
    server: RedisServer, authority: Authority
) -> None:
    async with behind_tls(server.port, authority) as relay:
        assert await told(f"rediss://localhost:{relay.port}", ca=authority.file) == ""


@asynccontextmanager
async def guarded_sentinel(master: int) -> AsyncIterator[RedisServer]:
    """A sentinel that wants a password, of a master at that port."""
    options = {
        "bind": "127.0.0.1",
        "requirepass": SECRET,
        "sentinel monitor": f"{SERVICE} 127.0.0.1 {master} 1",
        "sentinel auth-user": f"{SERVICE} {ADMIN}",
        "sentinel auth-pass": f"{SERVICE} {ADMIN}",
    }
    with short_folder() as folder:
        sentinel = laid_out(folder, lasting_ports(1)[0], options, name="sentinel")
        try:
            await sentinel.start()
            yield sentinel
        finally:
            sentinel.kill()


async def test_sentinels_name_the_server_with_tls_and_the_same_password_where_they_want_one(
    authority: Authority,
) -> None:
    async with (
        running_redis(password=SECRET) as redis,
        plain_or_tls(redis.port, authority) as port,
        guarded_sentinel(port) as sentinel,
        behind_tls(sentinel.port, authority) as relay,
    ):
        plain, tls = f"redis+sentinel://127.0.0.1:{sentinel.port}", f"rediss+sentinel://localhost:{relay.port}"
        async with client(f"{plain}/{SERVICE}/1", SECRET) as asked:
            await eventually(lambda: answers(asked))  # the sentinel has to have met the server
        assert await told(f"{tls}/{SERVICE}", SECRET, authority.file) == ""
        assert await told(f"{tls}/{SERVICE}", "wrong", authority.file) == "refuses the user or the password"
        assert (relay.accepted, await told(f"{plain}/{SERVICE}")) == (4, "asks for a password, and was given none")


async def answers(asked: Client) -> bool:
    return not await beat(asked)


async def test_a_cluster_is_found_by_any_of_its_nodes_also_with_tls(authority: Authority) -> None:
    async with running_cluster() as cluster, AsyncExitStack() as stack:
        for node in cluster.nodes:
            assert await told(f"redis+cluster://127.0.0.1:{node.port}") == ""
        relays = [await stack.enter_async_context(behind_tls(node.port, authority)) for node in cluster.nodes]
        for node, relay in zip(cluster.nodes, relays, strict=True):
            await node.ask("CONFIG", "SET", "cluster-announce-bus-port", node.port + BUS)
            await node.ask("CONFIG", "SET", "cluster-announce-port", relay.port)
        async with client(f"rediss+cluster://localhost:{relays[0].port}", ca=authority.file) as asked:
            await eventually(lambda: answers(asked))  # the nodes have to tell each other of their new ports


# -- servers that are gone -----------------------------------------------------------------------------------------


async def test_a_sentinel_whose_machine_is_gone_does_not_hide_the_others() -> None:
    async with running_sentinel() as watched, relayed(watched.sentinel.port) as gone:
        gone.swallow()
        sentinels = f"127.0.0.1:{gone.port},127.0.0.1:{free_port()},127.0.0.1:{watched.sentinel.port}"
        assert await told(f"redis+sentinel://{sentinels}/{SERVICE}") == ""


async def test_after_a_failover_from_a_silent_master_the_one_that_a_sentinel_names_is_used() -> None:
    async with (
        running_sentinel() as watched,
        client(f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/{SERVICE}") as asked,
    ):
        assert await beat(asked) == ""
        watched.master.pause()
        assert await beat(asked) == "did not answer within 1 s"
        await watched.until_other_than(watched.master)
        await eventually(lambda: answers(asked), seconds=BACK_SECONDS)


async def test_after_a_failover_from_a_silent_master_another_node_of_the_cluster_is_used() -> None:
    async with running_cluster(replicas=1) as cluster, client(f"redis+cluster://{cluster.hosts}") as asked:
        assert await beat(asked) == ""
        master = await cluster.master_of(KEYS.gates.decode())
        master.pause()
        assert await beat(asked) == "did not answer within 0.5 s"
        await cluster.until_master_of(KEYS.gates.decode(), lambda node: node is not master)
        await eventually(lambda: answers(asked), seconds=BACK_SECONDS)


# -- the password --------------------------------------------------------------------------------------------------


async def test_a_new_password_in_the_file_is_used_for_the_next_connection(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(SECRET + "\n")
    async with running_redis(users=USERS) as redis, client(redis.url.replace("//", "//sluice@"), secret) as asked:
        assert await beat(asked) == ""
        await redis.ask("ACL", "SETUSER", "sluice", "resetpass", ">another")
        assert await beat(asked) == ""  # the connection goes on as who it is
        await redis.ask("CLIENT", "KILL", "USER", "sluice")
        await eventually(partial(says, asked, "refuses the user or the password"))
        secret.write_text("another\r\n")
        assert await beat(asked) == ""


async def test_a_password_that_comes_later_is_used_once_it_is_there(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    cannot = "cannot be asked: the file of --store-password-file cannot be read"
    async with running_redis(password=SECRET) as redis, client(redis.url, secret) as asked:
        assert await beat(asked) == f"{cannot} (no such file or directory)"
        secret.write_bytes(b"\xff")
        assert await beat(asked) == f"{cannot} (it is no text)"
        secret.write_text(SECRET)
        assert await beat(asked) == ""


async def says(asked: Client, trouble: str) -> bool:
    return await beat(asked) == trouble


async def test_other_certificates_in_the_file_are_read_once_those_of_before_do_not_do(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Authority(tmp_path).file.read_bytes())
    async with (
        behind_tls(server.port, authority) as relay,
        client(f"rediss://localhost:{relay.port}", ca=trusted) as asked,
    ):
        assert (await beat(asked)).startswith(NOT_TRUSTED)
        trusted.write_bytes(authority.file.read_bytes())
        assert await beat(asked) == ""


# -- mistakes ------------------------------------------------------------------------------------------------------

NOT_TRUSTED = "shows a certificate that is not trusted: "
NO_NAME = "cannot be reached: its name is not known"


@pytest.mark.parametrize(
    ("address", "trouble"),
    [
        ("redis://no-such-host.invalid", rf"{NO_NAME}( now)?"),
        ("redis+sentinel://no-such-host.invalid/mymaster", rf"{NO_NAME}( now)?"),
        ("redis+cluster://no-such-host.invalid", rf"{NO_NAME}( now)?"),
        ("redis://127.0.0.1:{free}", "cannot be reached: nobody listens there"),
        ("redis+cluster://127.0.0.1:{free}", "cannot be reached: nobody listens there"),
        ("redis+sentinel://127.0.0.1:{free}/mymaster", "cannot be reached: nobody listens there"),
        ("unix:///no-such-folder/redis.sock", "cannot be reached: there is no such socket"),
        ("redis://127.0.0.1:{port}/99", "has no database of that number"),
        ("redis+cluster://127.0.0.1:{port}", "is no cluster: the address of one server begins with redis://"),
        (
            "redis+sentinel://127.0.0.1:{port}/mymaster",
            "is no sentinel: the address of one server begins with redis://",
        ),
        (
            "rediss://127.0.0.1:{port}",
            "did not answer within 1 s; if it is none for TLS, the address begins with redis",
        ),
    ],
)
async def test_a_wrong_address_is_told_in_words(address: str, trouble: str, server: RedisServer) -> None:
    assert re.fullmatch(trouble, await told(address.format(port=server.port, free=free_port())))


@pytest.mark.parametrize(
    ("user", "password", "trouble"),
    [
        ("", None, "asks for a password, and was given none"),
        ("", "wrong", "refuses the user or the password"),
        ("sluice@", "wrong", "refuses the user or the password"),
        ("sluice@", None, "refuses the user or the password"),
        ("nobody@", SECRET, "refuses the user or the password"),
    ],
)
async def test_a_wrong_password_is_told_in_words(user: str, password: str | None, trouble: str) -> None:
    async with running_redis(password=SECRET, users=USERS) as redis:
        for form in ("redis", "redis+cluster"):
            assert await told(redis.url.replace("redis://", f"{form}://{user}"), password) == trouble


async def test_a_password_for_a_server_that_has_none_is_told_in_words(server: RedisServer) -> None:
    assert await told(server.url, SECRET) == (
        "has no password for its default user, and was given one: leave it out, or put a user into the address"
    )


async def test_a_server_that_is_not_trusted_or_speaks_no_tls_is_told_in_words(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    async with behind_tls(server.port, authority) as relay:
        address = f"rediss://localhost:{relay.port}"
        assert (await told(address)).startswith(NOT_TRUSTED)
        assert (await told(address, ca=other.file)).startswith(NOT_TRUSTED)
        assert (await told(address.replace("rediss", "rediss+cluster"), ca=other.file)).startswith(NOT_TRUSTED)
        assert await told(address, ca=tmp_path / "nothing.pem") == (
            "cannot be trusted: the file of --store-ca-bundle cannot be read (no such file or directory)"
        )
        assert await told(address, ca=empty) == (
            "cannot be trusted: the file of --store-ca-bundle holds no certificate that can be read"
        )
        assert await told(address.replace("rediss", "redis")) == (
            "cannot be reached: the connection was closed; if it is one for TLS, the address begins with rediss"
        )


async def test_the_address_of_one_server_for_something_else_is_told_in_words() -> None:
    async with running_cluster() as cluster:
        others = await nodes_beside(cluster)
        assert await told(others[0].url) == "is a node of a cluster: its address begins with redis+cluster://"
        assert await told(f"{others[0].url}/1") == "is a node of a cluster: its address begins with redis+cluster://"
    async with running_sentinel() as watched:
        assert await told(watched.sentinel.url) == (
            "runs no scripts; if it is a sentinel, its address begins with redis+sentinel://"
        )
        assert await told(watched.replica.url) == "is a replica that cannot be written to"
        assert await told(f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/another") == (
            "has sentinels that name no server for another: is that spelled right, and is it up?"
        )


async def nodes_beside(cluster: RedisCluster) -> list[RedisServer]:
    """Those that do not answer for the provider's keys."""
    master = await cluster.master_of(KEYS.gates.decode())
    return [node for node in cluster.nodes if node is not master]
