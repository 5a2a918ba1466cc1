"""unclip-serve: a server for programs that speak OpenAI's Images API, and a page to draw on."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys

from unclip_sample.request import Request, RequestError
from unclip_sample.running import exit_status
from unclip_sample.words import Parser, count, number

EXAMPLES = """examples:
  unclip-serve
  unclip-serve --model my-model --device cuda --dtype bfloat16 --port 8080
  UNCLIP_API_KEY=... unclip-serve --host 0.0.0.0

Any program that uses the openai client talks to it: OPENAI_BASE_URL=http://127.0.0.1:8000/v1
"""
EMBEDDED_STYLES = ("noto style", "twemoji style", "fluent style", "flat style")
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-serve",
        description="Serve a model by OpenAI's Images API, and a web page to draw on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("model and machine").add_argument
    add("--model", metavar="FOLDER", help="the embedded model unless given")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    add("--dtype", choices=DTYPES, default="float32", help="of the decoder and the upsamplers")
    add("--threads", type=count, metavar="N", help="of the CPU")
    add("--rows", type=rows, metavar="A,B,C,D", help="of a batch: prior, decoder, to 256, to 1024")
    add("--running", type=count, default=8, metavar="N", help="pictures drawn at once; 8")
    add = parser.add_argument_group("clients").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    add("--port", type=port, default=8000, help="8000")
    add("--api-key", metavar="KEY", help="that clients must bring; better: UNCLIP_API_KEY")
    add("--name", help="of the model, for clients; its folder's name")
    add("--style", action="append", metavar="WORDS", help="for the page; may be repeated")
    add("--no-metadata", action="store_true", help="write pixels alone into pictures")
    add = parser.add_argument_group("limits").add_argument
    add("--queue", type=count, default=100, metavar="N", help="pictures that may wait; 100")
    add("--timeout", type=seconds, default=600.0, metavar="S", help="of a request; 600 s")
    add("--body", type=count, default=20, metavar="MIB", help="of a request's body; 20")
    add("--links", type=seconds, default=3600.0, metavar="S", help="life of a link; 3600 s")
    add("--grace", type=seconds, default=30.0, metavar="S", help="for answers at the end; 30 s")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


def rows(text: str) -> dict[str, int]:
    """Rows of a batch for each stage."""
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"give four numbers A,B,C,D, not {text!r}")
    stages = ("prior", "decoder", "upsampler_256", "upsampler_1024")
    return dict(zip(stages, map(count, parts), strict=True))


def port(text: str) -> int:
    """A port, 0 for any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"give a port from 0 to 65535, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A span of time."""
    return number(text, 0.1, 1e6)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when stopped, 2 for a mistake in the words, 1 for a server that failed."""
    args = parser().parse_args(arguments)
    return exit_status("unclip-serve", lambda: run(args), args.debug)


def run(args: argparse.Namespace) -> int:
    """Load the model and serve it until a signal comes."""
    try:
        import uvicorn

        from unclip_sample.serve.app import create_app
        from unclip_sample.serve.telemetry import log_as_json
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{error.name} is missing; install the extra: pip install 'unclip[serve]'"
        ) from None
    listener = listening(args.host, args.port)
    server = make_server(args)
    log_as_json()
    config = uvicorn.Config(
        create_app(server),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(args.grace)),
    )
    serving = uvicorn.Server(config)
    listener.listen()  # whoever comes from now on waits until it answers
    host, number = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"unclip-serve: http://{host}:{number} (stop with Ctrl-C)", flush=True)
    serving.run([listener])
    return 0


def make_app(words: list[str] | None = None):
    """The ASGI application of words, for servers that start it themselves.

    Without words, those of the environment's UNCLIP_SERVE.
    """
    from unclip_sample.serve.app import create_app

    words = shlex.split(os.environ.get("UNCLIP_SERVE", "")) if words is None else words
    return create_app(make_server(parser().parse_args(words)))


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        RequestError: when the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"--host, --port: cannot listen at {host}:{port} ({reason})") from None
    return listener


def make_server(args: argparse.Namespace):
    """The server of parsed words, its model loaded."""
    from unclip_sample.cli import load, model_facts, model_folder
    from unclip_sample.cli import parser as sample_words
    from unclip_sample.serve.app import Server, Settings
    from unclip_sample.serve.drawing import Easel
    from unclip_sample.serve.engine import Engine

    folder = model_folder(args.model)
    request = Request(prompts=[], seeds=[], settings={}, samplers={}, dtype=args.dtype)
    words = ["--device", args.device, "--quiet"]
    words += ["--threads", str(args.threads)] if args.threads else []
    loading = sample_words().parse_args(words)
    pipe = load(folder, request, loading)
    engine = Engine(pipe, args.rows, args.running, args.queue)
    styles = args.style or (EMBEDDED_STYLES if args.model is None else ())
    settings = Settings(
        model=args.name or folder.name,
        api_key=args.api_key or os.environ.get("UNCLIP_API_KEY") or None,
        timeout_s=args.timeout,
        max_body_bytes=args.body << 20,
        link_lifetime_s=args.links,
        metadata=not args.no_metadata,
        styles=tuple(styles),
    )
    facts = model_facts(folder, request, loading)
    return Server(Easel(pipe, facts), engine, settings)


if __name__ == "__main__":
    sys.exit(main())
