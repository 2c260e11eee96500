"""The REDCap job's settings: REDCAP_* and SYNC_*, as the README's table has them."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from worker.errors import SettingsError
from worker.handler import find
from worker.records import RECORDS_MAX_PER_REQUEST

Fault = Mapping[str, str]  # variable, message

DURATION_MAX_S = 10 * 366 * 86_400
RATE_MAX = 600  # above it a server bans the address
SHAPING = {"handler", "on_delete", "drop_identifiers"}  # a change of these makes other rows, so a full cycle
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: object) -> float:
    """Return the seconds of `90s`, `1h30m`, `0` or a number. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", str(text).strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != str(text).strip().lower():
        raise ValueError("is no duration: write 90s, 30m, 1h30m, or a number of seconds")
    total = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if total > DURATION_MAX_S:
        raise ValueError("is longer than ten years")
    return total


def names(text: object) -> object:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def batch_size(text: object) -> int | str:
    """Return `auto` or a number of records. Raises ValueError."""
    if text == "auto" or (str(text).isdecimal() and 1 <= int(str(text)) <= RECORDS_MAX_PER_REQUEST):
        return "auto" if text == "auto" else int(str(text))
    raise ValueError(f"must be auto, or a number from 1 to {RECORDS_MAX_PER_REQUEST}")


BatchSize = Annotated[int | str, BeforeValidator(batch_size)]
Seconds = Annotated[float, BeforeValidator(seconds)]
Names = Annotated[list[str], NoDecode, BeforeValidator(names)]


def _setting(default: Any, meaning: str, *, shown: str | None = None, **bounds: Any) -> Any:
    """Return a field; `shown` is its default in words where a value does not say it."""
    return Field(default, description=meaning, json_schema_extra={"shown": shown}, **bounds)


class RedcapSettings(BaseSettings):
    """Where the project is, and what of it is wanted; in the order of the README's table."""

    model_config = SettingsConfigDict(
        env_prefix="REDCAP_", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    # Before the URL, whose check asks for it.
    allow_http: bool = _setting(default=False, meaning="the token and the data go over the network in the clear")
    api_url: str = _setting(
        "",
        "`https://…/api/`; `http` only for loopback or with `REDCAP_ALLOW_HTTP=1`",
        shown="required",
        validate_default=True,
    )
    # Before the token, which it may hold.
    api_token_file: str = _setting(
        "",
        "a file that holds the token; `redcap_api_token` in `$CREDENTIALS_DIRECTORY` is found by itself",
        validate_default=True,
    )
    api_token: SecretStr = _setting(
        SecretStr(""),
        "32 or 64 hex digits, from the project's API page",
        shown="required, here or in the file",
        validate_default=True,
    )
    fields: Names = _setting([], "comma-separated; the record id field is always added", shown="all")
    forms: Names = _setting([], "comma-separated names of instruments", shown="all")
    events: Names = _setting([], "comma-separated unique names of events", shown="all")
    filter_logic: str = _setting("", "passed on; records that leave the filter leave the database")
    raw_or_label: Literal["raw", "label"] = _setting("raw", "`raw` or `label`")
    batch_size: BatchSize = _setting(
        "auto", "records a request; `auto` goes by cells; halved when the server runs out of memory or time"
    )
    max_rate: int = _setting(120, "requests a minute; servers ban an address above 600", ge=1, le=RATE_MAX)
    overlap: Seconds = _setting(600.0, "how far a window reaches back over the last one", ge=0)
    timezone: str = _setting(
        "", "the server's zone, as `Europe/Berlin`", shown="found from the server's log, else the host's"
    )
    reconcile_every: Seconds = _setting(86_400.0, "compare all record ids; 0 never", ge=0)
    timeout: Annotated[tuple[Seconds, Seconds], NoDecode] = _setting((10.0, 300.0), "connect, read")
    retries: int = _setting(5, "exponential with jitter, `Retry-After` kept", ge=0, le=20)
    ca_bundle: Path | None = _setting(None, "certificates to trust, as a file or a folder", shown="system")

    @field_validator("api_url")
    @classmethod
    def _url(cls, text: str, info: ValidationInfo) -> str:
        if not text:
            raise ValueError("is not set: the address of the API, as https://redcap.example.org/api/")
        return _api_url(text, allow_http=bool(info.data.get("allow_http")))

    @field_validator("api_token_file")
    @classmethod
    def _file(cls, path: str) -> str:
        credential = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), "redcap_api_token")
        if not path and os.environ.get("CREDENTIALS_DIRECTORY") and os.path.exists(credential):
            path = credential
        if path and not os.environ.get("REDCAP_API_TOKEN"):
            _text_of(path)
        return path

    @field_validator("api_token")
    @classmethod
    def _token(cls, token: SecretStr, info: ValidationInfo) -> SecretStr:
        given = token.get_secret_value()
        if not given and "api_token_file" not in info.data:
            return token  # the file is the fault, and named already
        given = (given or _text_of(info.data["api_token_file"])).strip()
        file = info.data.get("api_token_file")
        if not given and file:
            raise ValueError(f"is not set, and {file} is empty: put the token into it")
        if not given:
            raise ValueError(
                "is not set, nor is REDCAP_API_TOKEN_FILE: copy the token from the project's API page in REDCap"
            )
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{32}){1,2}", given):
            where = "" if token.get_secret_value() or not file else f"of {file} "
            lines = f", and there are {len(given.splitlines())} lines" if "\n" in given else ""
            raise ValueError(
                f"{where}must have 32 or 64 hexadecimal digits{lines}: copy it from the project's API page in REDCap"
            )
        return SecretStr(given)

    def sources(self) -> dict[str, str]:
        """Return where values come from that no variable of their own holds, by field."""
        if os.environ.get("REDCAP_API_TOKEN") or not self.api_token_file:
            return {}
        if os.environ.get("REDCAP_API_TOKEN_FILE"):
            return {"api_token": "REDCAP_API_TOKEN_FILE"}
        return {"api_token": "credential", "api_token_file": "credential"}

    @field_validator("timeout", mode="before")
    @classmethod
    def _two(cls, value: object) -> object:
        parts = names(value)
        if isinstance(parts, list) and len(parts) != 2:
            raise ValueError("takes two durations, connect and read, as 10s,300s")
        if isinstance(parts, list) and not all(seconds(part) > 0 for part in parts):
            raise ValueError("must be above zero")
        return tuple(parts) if isinstance(parts, list) else parts

    @field_validator("ca_bundle")
    @classmethod
    def _is_there(cls, path: Path | None) -> Path | None:
        if path and not path.exists():
            raise ValueError(f"is {path}, which is neither a file nor a folder")
        return path

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            if name:
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no zone of the IANA database, as Europe/Berlin or America/Chicago") from None
        return name


def _text_of(path: str) -> str:
    """Return the token of a file; empty without one. Raises ValueError."""
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"{path} can't be read: {reason}") from None


def is_loopback(host: str) -> bool:
    """Return whether a host of a URL is this very machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _api_url(text: str, *, allow_http: bool) -> str:
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL: it looks like https://redcap.example.org/api/") from None
    if parts.scheme not in ("https", "http") or not host or re.search(r"[\s\x00-\x1f]|[^\x00-\x7f]", text.strip()):
        raise ValueError("is no URL: it looks like https://redcap.example.org/api/")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment: the token has a variable of its own")
    if parts.scheme == "http" and not is_loopback(host) and not allow_http:
        raise ValueError(
            "is http, which sends the token and patients' data in the clear: use https, "
            "or set REDCAP_ALLOW_HTTP=1 if you know that nobody listens"
        )
    if not parts.path.rstrip("/").endswith("/api"):
        raise ValueError("must end in /api/, as https://redcap.example.org/api/")
    return text.strip().rstrip("/") + "/"


class SyncSettings(BaseSettings):
    """Where the rows go."""

    model_config = SettingsConfigDict(
        env_prefix="SYNC_", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    sink: str = _setting(
        "",
        "SQLAlchemy URL: `sqlite:///`, `postgresql+psycopg://`; or `jsonl:FOLDER`, a change feed",
        shown="sqlite:///<state dir>/redcap.db",
    )
    handler: str = _setting("", "`module:callable`, your own processing of a record's rows")
    drop_identifiers: bool = _setting(
        default=False, meaning="leave out fields that the data dictionary marks as identifiers"
    )
    on_delete: Literal["mark", "erase"] = _setting("mark", "`mark` keeps the row with `deleted_at`; `erase` removes it")

    @field_validator("handler")
    @classmethod
    def _callable(cls, target: str) -> str:
        find(target)
        return target

    @field_validator("sink")
    @classmethod
    def _known(cls, text: str) -> str:
        if not text or text.removeprefix("jsonl:") not in (text, ""):
            return text
        try:
            url = make_url(text)
            good = url.drivername == "postgresql+psycopg" or (
                url.drivername == "sqlite" and url.database not in (None, "", ":memory:") and not url.query
            )
        except (ArgumentError, ValueError):
            good = False
        if not good:
            raise ValueError("must be sqlite:///FILE, postgresql+psycopg://USER@HOST/DATABASE, or jsonl:FOLDER")
        return text


MODELS = (RedcapSettings, SyncSettings)


def load() -> tuple[RedcapSettings, SyncSettings]:
    """Return the settings of the environment. Raises SettingsError with every fault."""
    if found := faults():
        lines = "; ".join(f"{one['variable']}: {one['message']}" for one in found)
        raise SettingsError(f"the configuration is invalid: {lines}")
    return RedcapSettings(), SyncSettings()


def faults() -> list[Fault]:
    """Return all that is wrong with the environment, as `variable` and `message`."""
    found: list[Fault] = []
    for model in MODELS:
        try:
            model()
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                variable = f"{model.model_config['env_prefix']}{problem['loc'][0]}".upper()
                found.append({"variable": variable, "message": problem["msg"].removeprefix("Value error, ")})
    return found
