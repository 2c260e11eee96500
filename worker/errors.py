"""What can go wrong with a sync, by name; each text says what to do, and quotes no value."""

import re


class SyncError(Exception):
    """A cycle that can't go on.

    `transient` errors are worth another try; where `smaller` is set, a smaller batch is.
    """

    transient = False
    smaller = False


def _kind(name: str, meaning: str, base: type[SyncError] = SyncError, **traits: bool) -> type[SyncError]:
    """Return a class of errors; its name is the stable code that reports show."""
    return type(name, (base,), {"__doc__": meaning, "__module__": __name__, **traits})


SettingsError = _kind("SettingsError", "A setting is missing or malformed.")
ServerUnreachable = _kind("ServerUnreachable", "No connection, or it broke.", transient=True)
TlsFailed = _kind("TlsFailed", "The server's certificate is not good.")
ServerTooSlow = _kind("ServerTooSlow", "No answer, or too little of it, in time.", transient=True, smaller=True)
ServerFailed = _kind("ServerFailed", "A status of 500 and above, or the server's word that it can't.", transient=True)
TokenRefused = _kind("TokenRefused", "The token is wrong, or may not do this.")
RightMissing = _kind(
    "RightMissing", "REDCap says that the token's user lacks the right for this one thing.", TokenRefused
)
RequestRefused = _kind("RequestRefused", "The server does not accept the request.")
NotRedcap = _kind("NotRedcap", "A web page, or something else that no REDCap API sends.", transient=True)
RedirectRefused = _kind("RedirectRefused", "The server sends us elsewhere.")
AnswerCutOff = _kind("AnswerCutOff", "The answer ended before its end.", transient=True, smaller=True)
AnswerMalformed = _kind("AnswerMalformed", "The answer is not what was asked for.")
OutOfServerMemory = _kind("OutOfServerMemory", "REDCap ran out of memory for the request.", smaller=True)
StructureChanged = _kind("StructureChanged", "The dictionary, or what the token may see, changed during the cycle.")
LabelsAmbiguous = _kind("LabelsAmbiguous", "Labels do not tell the project's rows apart.")
IdsHashed = _kind("IdsHashed", "The token's rights hide the record ids.")
RecordsUnconfirmed = _kind("RecordsUnconfirmed", "Records can't be told from lost ones.")
SinkFailed = _kind("SinkFailed", "The database does not take what it should.")
SinkBusy = _kind("SinkBusy", "Another sync works on the same project in the same database.")
StateFailed = _kind("StateFailed", "The state directory does not take what a cycle keeps there.")
SinkNewer = _kind("SinkNewer", "The database was made by a newer version.")
ProjectMismatch = _kind("ProjectMismatch", "The database holds another server's project of the same number.")
HandlerFailed = _kind("HandlerFailed", "The callable of SYNC_HANDLER raised, or returned what no row can be.")
UnexpectedError = _kind("UnexpectedError", "A defect: the place is named, the values are not.")


class TooManyRequests(SyncError):
    """The server asks for fewer requests."""

    transient = True

    def __init__(self, text: str, retry_after_s: float | None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


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
    known = _KNOWN.match(text)
    if known and "records" in text:  # what it quotes then are ids
        return f"{known[0]} ... records ..."
    if not known:
        return f"({len(text):,} characters that may hold values: not shown)"

    def mask(match: re.Match[str]) -> str:
        return match[0] if _NAME.fullmatch(match[0]) else "'…'"

    return _QUOTED.sub(mask, re.sub(r"<[^>]*>", " ", text))[:300].strip()
