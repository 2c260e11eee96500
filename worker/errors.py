"""What can go wrong with a sync, by name; each text says what to do, and quotes no value."""

import re


class SyncError(Exception):
    """A cycle that can't go on.

    `transient` errors are worth another try; where `smaller` is set, a smaller batch is.
    """

    transient = False
    smaller = False
    retry_after_s: float | None = None  # what the server asked for


CATALOGUE: dict[str, tuple[str, str]] = {}  # code: what it means, what to do


def _kind(name: str, meaning: str, remedy: str, base: type[SyncError] = SyncError, **traits: bool) -> type[SyncError]:
    """Return a class of errors; its name is the stable code that reports show."""
    CATALOGUE[name] = (meaning, remedy)
    return type(name, (base,), {"__doc__": meaning, "__module__": __name__, **traits})


SettingsError = _kind(
    "SettingsError",
    "A setting is missing or malformed.",
    "Run `redcap-sync config`: it shows each setting and where it comes from.",
)
ServerUnreachable = _kind(
    "ServerUnreachable",
    "There was no connection to the server, or it broke.",
    "Look at the network, the firewall, the name in `REDCAP_API_URL` and a proxy in `HTTPS_PROXY`; the next cycle tries again.",
    transient=True,
)
TlsFailed = _kind(
    "TlsFailed",
    "The server's certificate is not accepted.",
    "If your institution signs its own, name its bundle in `REDCAP_CA_BUNDLE`; if the name is another or it has expired, tell the "
    "server's administrator; if there is no TLS at all, look at the address and its port.",
)
ServerTooSlow = _kind(
    "ServerTooSlow",
    "No answer, or too little of it, came in time.",
    "Make `REDCAP_BATCH_SIZE` smaller, or the second part of `REDCAP_TIMEOUT` longer.",
    transient=True,
    smaller=True,
)
ServerFailed = _kind(
    "ServerFailed",
    "The server answered that it can't: a status of 500 or above.",
    "Wait for the next cycle; if it does not end, ask the server's administrator about maintenance or load.",
    transient=True,
)
TokenRefused = _kind(
    "TokenRefused",
    "The server refuses the token, or what it may not do.",
    "Copy the token anew from the project's API page, and see that its user has the API Export right and has not expired; "
    "a web page instead of an error means a firewall or a ban.",
)
RightMissing = _kind(
    "RightMissing",
    "The token's user lacks the right for this one thing.",
    "Give the user the right that the message names, in the project's User Rights.",
    TokenRefused,
)
RequestRefused = _kind(
    "RequestRefused",
    "The server does not accept the request.",
    "Compare `REDCAP_FIELDS`, `REDCAP_FORMS`, `REDCAP_EVENTS` and `REDCAP_FILTER_LOGIC` with the project, and the address with its API page.",
)
ApiNotThere = _kind(
    "ApiNotThere",
    "The server has no API at the address (status 404).",
    "Copy `REDCAP_API_URL` from the project's API page; it ends in `/api/`.",
    RequestRefused,
)
NotRedcap = _kind(
    "NotRedcap",
    "A web page came, or something else that no REDCap API sends.",
    "See that `REDCAP_API_URL` ends in `/api/`, and that no log-in page, proxy or maintenance page stands before it.",
    transient=True,
)
RedirectRefused = _kind(
    "RedirectRefused",
    "The server sends the request elsewhere, and the token is not sent along.",
    "Set `REDCAP_API_URL` to the address that REDCap has now.",
)
AnswerCutOff = _kind(
    "AnswerCutOff",
    "The answer ended before its end; nothing of it was used.",
    "The next try may do; if not, make `REDCAP_BATCH_SIZE` smaller, or look at the proxies on the way.",
    transient=True,
    smaller=True,
)
AnswerMalformed = _kind(
    "AnswerMalformed",
    "The answer is not what was asked for; nothing of it was used.",
    "Look at the proxies on the way and at the server's PHP errors; if it stays, report it with the message.",
)
OutOfServerMemory = _kind(
    "OutOfServerMemory",
    "REDCap ran out of memory for the request, of a single record too.",
    "Name fewer `REDCAP_FIELDS` or `REDCAP_FORMS`, or ask the server's administrator for a higher `memory_limit` of PHP.",
    smaller=True,
)
StructureChanged = _kind(
    "StructureChanged",
    "The dictionary, or what the token may see, changed during the cycle.",
    "Nothing: the next cycle reads all anew.",
)
LabelsAmbiguous = _kind(
    "LabelsAmbiguous",
    "Labels do not tell the project's rows apart.",
    "Set `REDCAP_RAW_OR_LABEL=raw`, or give the instruments different names in REDCap.",
)
IdsHashed = _kind(
    "IdsHashed",
    "The token's export rights hide the record ids.",
    "Give the token's user the right to export the record id field (Full Data Set, or no removal of identifiers).",
)
RecordsUnconfirmed = _kind(
    "RecordsUnconfirmed",
    "Whether records are deleted or lost by the server can't be told; nothing was deleted.",
    "If they were erased in REDCap, run `redcap-sync once --full`; if not, make `REDCAP_BATCH_SIZE` smaller.",
)
SinkFailed = _kind(
    "SinkFailed",
    "The database does not take what it should.",
    "Look at `SYNC_SINK`: that its server runs, that the database (or folder) and the user are there, that the user may create tables, and at the room on its disk.",
)
SinkBusy = _kind(
    "SinkBusy", "Another sync works on the same project in the same database.", "Run one instance for a project."
)
ZoneWrong = _kind(
    "ZoneWrong",
    "`REDCAP_TIMEZONE` is not the zone of the server's log.",
    "Unset `REDCAP_TIMEZONE`, or set the server's own. Until then the log is believed, and each cycle says so.",
)
StateFailed = _kind(
    "StateFailed",
    "The state directory does not take what a cycle keeps there.",
    "Look at the room on its disk and at who owns it: `redcap-sync check` says both.",
)
SinkNewer = _kind(
    "SinkNewer",
    "The database was made by a newer version of this program.",
    "Install that version again; nothing was changed.",
)
ProjectMismatch = _kind(
    "ProjectMismatch",
    "The database holds another server's project of the same number.",
    "Give each server's projects a database of their own in `SYNC_SINK`.",
)
HandlerFailed = _kind(
    "HandlerFailed",
    "The callable of `SYNC_HANDLER` raised, or returned what no row can be; its batch was not written.",
    "Mend it at the line that the message names; the next cycle takes up the same records.",
)
UnexpectedError = _kind(
    "UnexpectedError", "A defect of the sync: the place is named, the values are not.", "Report it with the whole line."
)
TooManyRequests = _kind(
    "TooManyRequests",
    "The server asks for fewer requests (status 429).",
    "Make `REDCAP_MAX_RATE` smaller, and see who else uses the API from this address.",
    transient=True,
)

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
