"""What can go wrong with a sync, by name; each text says what to do, and quotes no value."""

import re


class SyncError(Exception):
    """A cycle that can't go on.

    `transient` errors are worth another try; where `smaller` is set, a smaller batch is.
    """

    transient = False
    smaller = False


class SettingsError(SyncError):
    """A setting is missing or malformed."""


class ServerUnreachable(SyncError):
    """No connection, or it broke."""

    transient = True


class TlsFailed(SyncError):
    """The server's certificate is not good."""


class ServerTooSlow(SyncError):
    """No answer, or too little of it, within the time."""

    transient = True
    smaller = True


class ServerFailed(SyncError):
    """A status of 500 and above, or the server's own word that it can't."""

    transient = True


class TooManyRequests(SyncError):
    """The server asks for fewer requests."""

    transient = True

    def __init__(self, text: str, retry_after_s: float | None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class TokenRefused(SyncError):
    """The token is wrong, or may not do this."""


class RightMissing(TokenRefused):
    """REDCap itself says that the token's user has not the right for this one thing."""


class RequestRefused(SyncError):
    """The server does not accept the request."""


class NotRedcap(SyncError):
    """A web page, or something else that no REDCap API sends."""

    transient = True


class RedirectRefused(SyncError):
    """The server sends us elsewhere."""


class AnswerCutOff(SyncError):
    """The answer ended before its end."""

    transient = True
    smaller = True


class AnswerMalformed(SyncError):
    """The answer is not what was asked for."""


class OutOfServerMemory(SyncError):
    """REDCap ran out of memory for the request."""

    smaller = True


class IdsHashed(SyncError):
    """The token's rights hide the record ids."""


class RecordsUnconfirmed(SyncError):
    """Records can't be told from lost ones."""


class SinkFailed(SyncError):
    """The database does not take what it should."""


class SinkBusy(SyncError):
    """Another sync works on the same project in the same database."""


class UnexpectedError(SyncError):
    """A defect: the place is named, the values are not."""


# What REDCap is known to say, and says without a record's values.
_KNOWN = re.compile(
    r"You do not have|You cannot|The value of the parameter|The following values in the parameter|"
    r"The requested method|REDCap ran out|Insufficient user privileges"
)
_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|“[^”]*”""")
_NAME = re.compile(r"""['"][a-z][a-z0-9_]*['"]""")


def server_text(text: str) -> str:
    """Return a server's error text without what could be a record's value.

    Only what REDCap is known to say is shown; what stands in quotes is masked unless it looks
    like the name of a field or parameter.
    """
    if not _KNOWN.match(text):
        return f"({len(text):,} characters that may hold values: not shown)"

    def mask(match: re.Match[str]) -> str:
        return match[0] if _NAME.fullmatch(match[0]) else "'…'"

    return _QUOTED.sub(mask, re.sub(r"<[^>]*>", " ", text))[:300].strip()
