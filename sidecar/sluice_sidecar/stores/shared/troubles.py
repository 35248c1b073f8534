"""Why the store did not do what it was asked, in words for whoever has to mend it.

A text goes on after "the store …", or says what of this gate's own is wrong. It holds nothing of what was sent, no user
and no password; of what the server said it holds the name of a command, and no more.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from sluice_sidecar.stores.address import StoreAddress, StoreKind

FAILURES: Final = (RedisError, RedisClusterException, OSError)
"""What the client raises when the store cannot be used; time-outs are among them."""

_TLS: Final = "; if it is one for TLS, the address begins with rediss"
_NO_TLS: Final = "; if it is none for TLS, the address begins with redis"
_RIGHTS: Final = "docs/shared-state.md has the rights that it needs"
_COMMAND: Final = re.compile(r"'([A-Za-z|]{1,40})' command")
_IS_REPLICA: Final = "is a replica that cannot be written to"
_IS_FULL: Final = "is full: it has reached its maxmemory"
UNREADABLE: Final = "holds something that no gate wrote"
"""A script has met it in its keys."""
_STATES: Final = (
    (ReadOnlyError, _IS_REPLICA),
    (OutOfMemoryError, _IS_FULL),
    (BusyLoadingError, "is still loading its data"),
    (ClusterDownError, "is a cluster that is down"),
)
_SAID: Final = (
    # What an error means that a script met. Before Redis 7 all such errors look alike, and begin with where in the
    # script it was; later ones end with that.
    ("OOM command not allowed", _IS_FULL),
    ("READONLY", _IS_REPLICA),
    ("NOREPLICAS", "has too few replicas to take what is written"),
    ("no permissions", f"does not permit its user what a script does: {_RIGHTS}"),
    ("WRONGTYPE", UNREADABLE),
    # What a server says with the first word ERR alone, and what it means here.
    ("unauthenticated", "asks for a password, and was given none"),
    ("DB index is out of range", "has no database of that number"),
    ("SELECT is not allowed in cluster mode", "is a node of a cluster: its address begins with redis+cluster://"),
    ("cluster support disabled", "is no cluster: the address of one server begins with redis://"),
    ("unknown command 'SENTINEL'", "is no sentinel: the address of one server begins with redis://"),
    ("Only HELLO messages are accepted", "is a sentinel: its address begins with redis+sentinel://"),
    ("unknown command 'EVALSHA'", "runs no scripts; if it is a sentinel, its address begins with redis+sentinel://"),
    ("ACL failure in script", f"does not permit its user what a script does: {_RIGHTS}"),
    ("can't run this command", f"does not permit its user what a script does: {_RIGHTS}"),
    ("user_script", UNREADABLE),
)


class PasswordError(RedisError):
    """The file that holds the password cannot be read. The message is the whole text of the trouble."""


class NoMasterError(RedisConnectionError):
    """No sentinel names a server. Where none has answered, the cause is what one of them failed with."""


def explained(error: BaseException, address: StoreAddress, seconds: float, *, answered: bool = True) -> str:
    """Why the server did not answer, for which it had so many `seconds`.

    `answered`: it has before, so that the address cannot be wrong altogether.
    """
    inner = _inmost(error)
    match inner:
        case PasswordError():
            return str(inner)
        case RedisTimeout() | TimeoutError():
            return f"did not answer within {seconds:g} s" + (_NO_TLS if address.tls and not answered else "")
        case NoMasterError():
            return f"has sentinels that name no server for {address.service}: is that spelled right, and is it up?"
        case AuthenticationError():
            return _unauthenticated(str(inner))
        case NoPermissionError():
            command = _COMMAND.search(str(inner))
            what = f"the command {command.group(1).upper()}" if command else "the keys and channels of the prefix"
            return f"does not permit its user {what}: {_RIGHTS}"
        case MovedError() if address.kind is not StoreKind.CLUSTER:
            return "is a node of a cluster: its address begins with redis+cluster://"
    state = next((text for kind, text in _STATES if isinstance(inner, kind)), "")
    if state:
        return state
    if isinstance(inner, ResponseError):
        return _said(str(inner))
    return _unreachable(inner, address) + (_TLS if "losed" in str(inner) and not (address.tls or answered) else "")


def is_distrust(error: BaseException) -> bool:
    """The server is not trusted by the certificates that are at hand."""
    return isinstance(_inmost(error), ssl.SSLError)


def _inmost(error: BaseException) -> BaseException:
    """What the client wraps in errors of its own."""
    while type(error) in {RedisConnectionError, RedisClusterException, NoMasterError}:
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, FAILURES):
            break
        error = cause
    return error


def _unauthenticated(said: str) -> str:
    if "required" in said:
        return "asks for a password, and was given none"
    if "without any password" in said:
        return "has no password for its default user, and was given one: leave it out, or put a user into the address"
    return "refuses the user or the password"


def _said(text: str) -> str:
    known = next((meaning for words, meaning in _SAID if words in text), "")
    if known:
        return known
    word = text.split(" ", 1)[0]
    return f"answered with an error ({word[:32] if word.isascii() and word.isupper() else 'unknown'})"


def _untrusted(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted: {error.verify_message}"
    if error.library in {"X509", "PEM"}:
        return "cannot be trusted: the file of --store-ca-bundle holds no certificate that can be read"
    return f"cannot be spoken with by TLS: {(error.reason or 'unknown').replace('_', ' ').lower()}" + _NO_TLS


def _unreachable(error: BaseException, address: StoreAddress) -> str:
    match error:
        case ssl.SSLError():
            return _untrusted(error)
        case socket.gaierror():
            now = " now" if error.errno == socket.EAI_AGAIN else ""
            return f"cannot be reached: its name is not known{now}"
        case FileNotFoundError() if address.path is not None:
            return "cannot be reached: there is no such socket"
        case FileNotFoundError() | PermissionError() if address.tls:
            return f"cannot be trusted: the file of --store-ca-bundle cannot be read ({_in_words(error)})"
        case ConnectionRefusedError():
            return "cannot be reached: nobody listens there"
        case OSError():
            return f"cannot be reached: {_in_words(error)}"
        case RedisConnectionError() if "losed" in str(error):
            return "cannot be reached: the connection was closed"
        case RedisClusterException() if "not covered" in str(error):
            return "is a cluster whose slots are not all served"
        case _:
            return "cannot be reached"


def _in_words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "for no reason that is told"


def unreadable(error: Exception) -> PasswordError:
    """The file of the password could not be read."""
    why = _in_words(error) if isinstance(error, OSError) else "it is no text"
    return PasswordError(f"cannot be asked: the file of --store-password-file cannot be read ({why})")
