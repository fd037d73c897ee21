"""`mtad serve`: an OpenAI-compatible server."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import add_common, add_settings, read_tables
from mtad.config import ServerOptions, SessionOptions
from mtad.energy import open_meter
from mtad.errors import ConfigError

DESCRIPTION = """Serve chats and completions as OpenAI's API does, with continuous batching. The
decoding flags are what requests get that do not say otherwise."""

EXAMPLES = """examples:
  mtad serve
  mtad serve --host 0.0.0.0 --port 8000 --keys-file keys.txt --max-rows 8
  mtad serve --target ./my-model --draft ./my-draft --threshold 0.9
  mtad serve --config serve.toml --log-format json --log-file serve.log --rate-limit 60
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}'

A config file holds the same settings in tables [server], [batch], [models] and
[decoding], or side by side. Keys come from --keys-file (lines of NAME KEY) or the variable MTAD_API_KEYS
(NAME:KEY with commas between); without any, everybody is let in.
"""


def add_command(commands: Any) -> None:
    """Add the `serve` subcommand."""
    parser = commands.add_parser(
        "serve",
        help="serve chats and completions over HTTP, as OpenAI's API does",
        usage="%(prog)s [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add_common(parser)
    add_settings(parser, ServerOptions, "server")
    add_settings(parser, SessionOptions, "batch")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    models, generation, server, session = read_tables(options, {"server": ServerOptions, "batch": SessionOptions})
    if session.max_waiting is not None or options.system is not None:
        name, instead = ("max_waiting", "--max-open") if options.system is None else ("system", "a system message")
        raise ConfigError(f"the server has no {name}; use {instead} instead")
    try:
        from mtad.server.app import Service
        from mtad.server.energy_metric import EnergyMetric
        from mtad.server.gate import read_keys
        from mtad.server.running import listen, make_server
        from mtad.server.server_log import ServerLog
    except ImportError as error:
        raise ConfigError(
            f"mtad serve needs packages that cannot be imported ({error}); install them with pip install 'mtad[server]'"
        ) from error
    keys = read_keys(None if server.keys_file is None else Path(server.keys_file), os.environ)
    meter = open_meter(server.meter)
    log = ServerLog(server)
    try:
        with listen(server) as listener:
            engine = load_engine(models, generation, color=options.color, keeps_draft=True)
            logging.basicConfig(level=logging.INFO, handlers=[log])
            service = Service(engine, generation, session, server, keys, log)
            service.metrics.registry.register(EnergyMetric(meter))
            host, port = listener.getsockname()[:2]
            with engine.session(session.max_rows, session.max_tokens, session.prefill_chunk) as opened:
                print(f"caches: {opened.cache_size} when all are full", file=sys.stderr)
            print(f"serving {service.model} on http://{host}:{port}", file=sys.stderr, flush=True)
            make_server(service, server).run(sockets=[listener])
    finally:
        meter.close()
        log.close()
    return 0
