"""Where the server listens and what it lets in."""

import re
from dataclasses import dataclass
from typing import Literal

from mtad.config.fields import check_settings, setting
from mtad.errors import ConfigError

_ORIGIN = re.compile(r"https?://[^/?#\s]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Address, limits, patience and log of `mtad serve`."""

    host: str = setting(str, "127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = setting(int, 8000, "port to listen on; 0 takes a free one and says which", minimum=0, maximum=65535)
    max_body_bytes: int = setting(int, 1 << 20, "longest request body", minimum=1024)
    max_choices: int = setting(int, 8, "most answers that one request can ask for", minimum=1)
    max_open: int = setting(
        int,
        256,
        "answers running or waiting before new ones get status 429; clients with less than their share go on",
        minimum=1,
    )
    rate_limit: float | None = setting(float, None, "requests a minute for each key, or address without keys", above=0)
    token_rate_limit: float | None = setting(
        float, None, "tokens of prompts and answers a minute for each key, or address", above=0
    )
    request_timeout: float = setting(float, 600.0, "seconds until a request is given up", above=0)
    body_timeout: float = setting(float, 30.0, "seconds that a request's head and its body may take to come", above=0)
    drain_timeout: float = setting(float, 60.0, "seconds that running answers get at the end", minimum=0)

    keys_file: str | None = setting(str, None, "API keys: a file with a line of NAME KEY each")
    cors_origin: tuple[str, ...] = setting(
        tuple,
        (),
        "origin whose pages may call the server, such as https://example.org, or *; may be given several times",
    )
    meter: str = setting(str, "auto", "counter of the joules in /metrics: auto, zeus, nvml, rapl or none")
    log_format: Literal["text", "json"] = setting(str, "text", "lines of the log", choices=("text", "json"))
    log_file: str | None = setting(str, None, "file of the log (default: standard error)")
    log_prompts: bool = setting(bool, False, "write prompts into the log")

    def __post_init__(self) -> None:
        check_settings(self)
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origin must be * or such as https://example.org:8080, with nothing behind, got {origin!r}"
                )
