"""What `--store` may say, and that no secret in it is ever told again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice_sidecar.stores.address import StoreAddress, StoreKind

SINGLE, SENTINEL, CLUSTER = StoreKind
SECRET = "5ecret"

FORMS = {
    "redis://redis.example": StoreAddress(SINGLE, (("redis.example", 6379),)),
    "redis://redis.example/": StoreAddress(SINGLE, (("redis.example", 6379),)),
    "REDIS://Redis.Example:6380/15": StoreAddress(SINGLE, (("redis.example", 6380),), db=15),
    "redis://10.0.0.7:1/0": StoreAddress(SINGLE, (("10.0.0.7", 1),)),
    "redis://[::1]": StoreAddress(SINGLE, (("::1", 6379),)),
    "redis://[FD00:0::7]:65535": StoreAddress(SINGLE, (("fd00::7", 65535),)),
    "redis://my_redis-1:6379": StoreAddress(SINGLE, (("my_redis-1", 6379),)),
    "redis://gate@redis": StoreAddress(SINGLE, (("redis", 6379),), user="gate"),
    "redis://g%3At%C3%A9@redis": StoreAddress(SINGLE, (("redis", 6379),), user="g:té"),
    "rediss://gate@redis:7000/3": StoreAddress(SINGLE, (("redis", 7000),), db=3, tls=True, user="gate"),
    "unix:///run/redis.sock": StoreAddress(SINGLE, path=Path("/run/redis.sock")),
    "unix:///run/redis.sock?db=2": StoreAddress(SINGLE, path=Path("/run/redis.sock"), db=2),
    "unix:///run/re%20dis%3F.sock": StoreAddress(SINGLE, path=Path("/run/re dis?.sock")),
    "unix:///run/@redis.sock": StoreAddress(SINGLE, path=Path("/run/@redis.sock")),
    "unix://gate@/run/redis.sock": StoreAddress(SINGLE, path=Path("/run/redis.sock"), user="gate"),
    "unix:///" + "x" * 106: StoreAddress(SINGLE, path=Path("/" + "x" * 106)),
    "redis+sentinel://one,two:26380/mymaster": StoreAddress(
        SENTINEL, (("one", 26379), ("two", 26380)), service="mymaster"
    ),
    "rediss+sentinel://gate@one/mymaster/4": StoreAddress(
        SENTINEL, (("one", 26379),), service="mymaster", db=4, tls=True, user="gate"
    ),
    "redis+cluster://one,two:7001,[::1]:7002": StoreAddress(CLUSTER, (("one", 6379), ("two", 7001), ("::1", 7002))),
    "rediss+cluster://gate@one/": StoreAddress(CLUSTER, (("one", 6379),), tls=True, user="gate"),
}


@pytest.mark.parametrize(("text", "expected"), FORMS.items(), ids=FORMS)
def test_an_address_says_which_servers_and_how_they_are_reached(text: str, expected: StoreAddress) -> None:
    assert StoreAddress.parse(text) == expected


def test_an_address_is_shown_in_one_form_whatever_was_written() -> None:
    assert [str(StoreAddress.parse(text)) for text in FORMS] == [
        "redis://redis.example:6379",
        "redis://redis.example:6379",
        "redis://redis.example:6380/15",
        "redis://10.0.0.7:1",
        "redis://[::1]:6379",
        "redis://[fd00::7]:65535",
        "redis://my_redis-1:6379",
        "redis://redis:6379",
        "redis://redis:6379",
        "rediss://redis:7000/3",
        "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=2",
        "unix:///run/re%20dis%3F.sock",
        "unix:///run/%40redis.sock",
        "unix:///run/redis.sock",
        "unix:///" + "x" * 106,
        "redis+sentinel://one:26379,two:26380/mymaster",
        "rediss+sentinel://one:26379/mymaster/4",
        "redis+cluster://one:6379,two:7001,[::1]:7002",
        "rediss+cluster://one:6379",
    ]


@pytest.mark.parametrize("text", [text for text in FORMS if "gate@" not in text and "g%3A" not in text])
def test_what_is_shown_is_an_address_again(text: str) -> None:
    address = StoreAddress.parse(text)

    assert StoreAddress.parse(str(address)) == address


MISTAKES = {
    "": "it is no address of a store: write redis://HOST",
    "redis": "it is no address of a store",
    "redis.example:6379": "it is no address of a store",
    "redis:/redis.example": "it is no address of a store",
    "http://redis.example": "it is no address of a store",
    "redis+unix:///run/redis.sock": "it is no address of a store",
    "redis://": "server 1 of it cannot be read: write a name or an IP address",
    "redis:///0": "server 1 of it cannot be read",
    "redis://redis:": "server 1 of it cannot be read",
    "redis://redis:port": "server 1 of it cannot be read",
    "redis://::1": "server 1 of it cannot be read",
    "redis://-redis": "server 1 of it cannot be read",
    "redis://re dis": "server 1 of it cannot be read",
    "redis://redis\n": "server 1 of it cannot be read",
    "redis://" + "x" * 254: "server 1 of it cannot be read",
    "redis://redis:0": "server 1 of it has a port that is not from 1 to 65535",
    "redis://redis:65536": "server 1 of it has a port that is not from 1 to 65535",
    "redis://redis:655360": "server 1 of it cannot be read",
    "redis://[::1:6379": "server 1 of it cannot be read",
    "redis://[1.2.3.4]": "server 1 of it has no IPv6 address in its brackets",
    "redis://redis/one": "a database is a number, as in redis://HOST/1",
    "redis://redis/-1": "a database is a number",
    "redis://redis/\u0661": "a database is a number",
    "redis://redis/0/1": "a database is a number",
    "redis://redis/0?timeout=1": "nothing may stand behind a ? or #",
    "redis://redis#1": "nothing may stand behind a ? or #",
    "redis://one,two": "it names several servers: write redis+cluster://",
    "redis://@redis": "in front of the @ stands the name of a user and nothing else",
    "redis://a b@redis": "in front of the @ stands the name of a user",
    "redis://a%20b@redis": "in front of the @ stands the name of a user",
    "redis://a%00@redis": "in front of the @ stands the name of a user",
    "redis://%ff@redis": "in front of the @ stands the name of a user",
    "redis://one,two@redis": "in front of the @ stands the name of a user",
    "redis+cluster://one,,two": "server 2 of it cannot be read",
    "redis+cluster://one,": "server 2 of it cannot be read",
    "redis+cluster://one/1": "a cluster has no databases to choose from",
    "redis+sentinel://one": "there must be what they call the service",
    "redis+sentinel://one/": "there must be what they call the service",
    "redis+sentinel://one/my%20master": "there must be what they call the service",
    "redis+sentinel://one/mymaster/x": "a database is a number",
    "unix://": "a Unix socket has an absolute path, behind three slashes",
    "unix:///": "a Unix socket has an absolute path",
    "unix://run/redis.sock": "a Unix socket has an absolute path",
    "unix:///run/\x00": "a Unix socket has an absolute path",
    "unix:///run/%ff": "a Unix socket has an absolute path",
    "unix:///run/\udcff": "a Unix socket has an absolute path",
    "unix:///" + "x" * 107: "the path has 108 bytes; a Unix socket's path has at most 107",
    "unix:///run/redis.sock?timeout=1": "behind the ? of a Unix socket stands its database and nothing else",
    "unix:///run/redis.sock?db=x": "a database is a number",
    "unix:///run/redis.sock?db=1&db=2": "a database is a number",
}


@pytest.mark.parametrize(("text", "complaint"), MISTAKES.items(), ids=ascii)
def test_what_cannot_be_read_is_said_with_what_can(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^\w") as raised:
        StoreAddress.parse(text)

    assert complaint in str(raised.value)


WITH_A_PASSWORD = [
    f"redis://gate:{SECRET}@redis",
    f"redis://:{SECRET}@redis",
    f"rediss://gate:{SECRET}@redis:6379/1",
    f"redis://gate:{SECRET}@{SECRET}@redis",
    f"redis://gate:{SECRET}/{SECRET}@redis",
    f"redis://gate:{SECRET}?#{SECRET}@redis",
    f"redis://gate:{SECRET}@",
    f"redis://redis:6379/0?password={SECRET}@{SECRET}",
    f"redis://redis/0?password={SECRET}",
    f"redis+sentinel://gate:{SECRET}@one,two/mymaster",
    f"redis+cluster://gate:{SECRET}@one,two",
    f"unix://gate:{SECRET}@/run/redis.sock",
    f"unix:///run/redis.sock?password={SECRET}",
    f"unix:///run/redis.sock?password={SECRET}@{SECRET}",
    f"unix:///run/redis.sock?username=gate&password={SECRET}",
]
MISPLACED = [
    f"gate:{SECRET}@redis:6379",
    f"{SECRET}://redis",
    f"redis://gate:{SECRET}",
    f"redis://redis:6379:{SECRET}",
    f"redis://redis:6379/{SECRET}",
    f"redis://redis/0/{SECRET}",
    f"redis://redis/0?{SECRET}@redis",
    f"redis://{SECRET} @redis",
    f"redis://{SECRET}%ff@redis",
    f"redis://[{SECRET}]",
    f"redis+sentinel://one/my master/{SECRET}",
    f"redis+cluster://one/{SECRET}",
    f"unix://{SECRET}",
    f"unix:///run/redis.sock?db={SECRET}",
    f"unix:///{SECRET}" + "x" * 107,
]


@pytest.mark.parametrize("text", WITH_A_PASSWORD)
def test_a_password_in_an_address_is_an_error_that_says_where_it_goes(text: str) -> None:
    with pytest.raises(ValueError, match="password") as raised:
        StoreAddress.parse(text)

    assert "into a file that --store-password-file names, or into the variable SLUICE_STORE_PASSWORD" in str(
        raised.value
    )
    assert SECRET not in repr(raised.value)


@pytest.mark.parametrize("text", MISPLACED)
def test_no_error_repeats_what_was_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"^\w") as raised:
        StoreAddress.parse(text)

    assert SECRET not in repr(raised.value)
    assert raised.value.__cause__ is None


def test_what_stands_in_the_place_of_the_user_is_not_shown() -> None:
    address = StoreAddress.parse(f"rediss://{SECRET}@redis")

    assert address.user == SECRET
    assert SECRET not in f"{address} {address!r}"
