"""Where the server listens and what it lets in."""

from dataclasses import dataclass

from mtad.config.fields import check_settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Address, limits and patience of `mtad serve`."""

    host: str = setting(str, "127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = setting(int, 8000, "port to listen on; 0 takes a free one and says which", minimum=0, maximum=65535)
    max_body_bytes: int = setting(int, 1 << 20, "longest request body", minimum=1024)
    max_choices: int = setting(int, 8, "most answers that one request can ask for", minimum=1)
    max_open: int = setting(int, 256, "answers running or waiting before new ones get status 429", minimum=1)
    request_timeout: float = setting(float, 600.0, "seconds until a request is given up", above=0)
    drain_timeout: float = setting(float, 60.0, "seconds that running answers get at the end", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
