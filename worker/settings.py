"""The REDCap job's settings: REDCAP_* and SYNC_*, as the README's table has them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from worker.errors import SettingsError
from worker.handler import find
from worker.records import RECORDS_MAX_PER_REQUEST

Fault = Mapping[str, str]  # variable, message

LOOPBACK = ("localhost", "127.0.0.1", "::1")
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


class RedcapSettings(BaseSettings):
    """Where the project is, and what of it is wanted."""

    model_config = SettingsConfigDict(
        env_prefix="REDCAP_", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    allow_http: bool = False  # before the URL, whose check asks for it
    api_url: str
    api_token: SecretStr
    fields: Names = []
    forms: Names = []
    events: Names = []
    filter_logic: str = ""
    raw_or_label: Literal["raw", "label"] = "raw"
    batch_size: BatchSize = "auto"
    max_rate: int = Field(120, ge=1, le=RATE_MAX)
    overlap: Seconds = Field(600.0, ge=0)
    timezone: str = ""
    reconcile_every: Seconds = Field(86_400.0, ge=0)
    timeout: Annotated[tuple[Seconds, Seconds], NoDecode] = (10.0, 300.0)
    retries: int = Field(5, ge=0, le=20)
    ca_bundle: FilePath | DirectoryPath | None = None

    @field_validator("api_url")
    @classmethod
    def _url(cls, text: str, info: ValidationInfo) -> str:
        return _api_url(text, allow_http=bool(info.data.get("allow_http")))

    @field_validator("api_token")
    @classmethod
    def _token(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{32}){1,2}", token.get_secret_value().strip()):
            raise ValueError("must have 32 or 64 hexadecimal digits: copy it from the project's API page in REDCap")
        return SecretStr(token.get_secret_value().strip())

    @field_validator("timeout", mode="before")
    @classmethod
    def _two(cls, value: object) -> object:
        parts = names(value)
        if isinstance(parts, list) and len(parts) != 2:
            raise ValueError("takes two durations, connect and read, as 10s,300s")
        if isinstance(parts, list) and not all(seconds(part) > 0 for part in parts):
            raise ValueError("must be above zero")
        return tuple(parts) if isinstance(parts, list) else parts

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            if name:
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no zone of the IANA database, as Europe/Berlin or America/Chicago") from None
        return name


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
    if parts.scheme == "http" and host not in LOOPBACK and not allow_http:
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

    sink: str = ""  # empty: SQLite in the state directory
    handler: str = ""
    on_delete: Literal["mark", "erase"] = "mark"
    drop_identifiers: bool = False

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


def load() -> tuple[RedcapSettings, SyncSettings]:
    """Return the settings of the environment. Raises SettingsError with every fault."""
    if found := faults():
        lines = "; ".join(f"{one['variable']}: {one['message']}" for one in found)
        raise SettingsError(f"the configuration is invalid: {lines}")
    return RedcapSettings(**_token_of_a_file()), SyncSettings()


def faults() -> list[Fault]:
    """Return all that is wrong with the environment, as `variable` and `message`."""
    found: list[Fault] = []
    try:
        token = _token_of_a_file()
    except SettingsError as error:
        found.append({"variable": "REDCAP_API_TOKEN_FILE", "message": str(error)})
        token = {"api_token": "0" * 32}  # so that it is not called missing as well
    for prefix, model, given in (("REDCAP_", RedcapSettings, token), ("SYNC_", SyncSettings, {})):
        try:
            model(**given)
        except ValidationError as error:
            found += [_fault(prefix, dict(problem)) for problem in error.errors(include_url=False)]
    return found


def _token_of_a_file() -> dict[str, Any]:
    """Return the token of REDCAP_API_TOKEN_FILE or systemd's credential, where the variable is not set."""
    if os.environ.get("REDCAP_API_TOKEN"):
        return {}
    path = os.environ.get("REDCAP_API_TOKEN_FILE")
    credential = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), "redcap_api_token")
    if not path and os.environ.get("CREDENTIALS_DIRECTORY") and os.path.exists(credential):
        path = credential
    if not path:
        return {}
    try:
        return {"api_token": Path(path).read_text(encoding="utf-8").strip()}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{path} can't be read: {reason}") from None


def _fault(prefix: str, problem: dict[str, Any]) -> Fault:
    message = str(problem["msg"]).removeprefix("Value error, ")
    variable = prefix + str(problem["loc"][0]).upper()
    if problem["type"] == "missing":
        message = {
            "REDCAP_API_URL": "is not set: the address of the API, as https://redcap.example.org/api/",
            "REDCAP_API_TOKEN": "is not set, nor is REDCAP_API_TOKEN_FILE: copy the token from the project's "
            "API page in REDCap",
        }.get(variable, message)
    return {"variable": variable, "message": message}
