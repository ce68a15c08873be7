"""``keyekit serve``: a teacher for students elsewhere."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyekit.cli.errors import CommandError

if TYPE_CHECKING:  # a --help must not wait for torch
    from keyekit.rollout.teachers.server import TeacherServer

__all__ = ["TOKEN_VARIABLE", "main", "server_of"]

TOKEN_VARIABLE = "KEYEKIT_TEACHER_TOKEN"
"""Environment variable that holds the token, for the server and its students."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(arguments: Sequence[str]) -> int:
    """Serve a folder until the process is told to end; requests under way are finished then.

    Args:
        arguments: Words after ``keyekit serve``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the folder cannot be served, or the address cannot be listened on.
    """
    options = _parser().parse_args(arguments)
    server = server_of(options)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, stream=sys.stderr)
    print(f"serving {options.folder} at {server.url}", flush=True)

    def stop(number: int, frame: object) -> None:
        # Shutting down waits for the loop below, which this handler interrupts: it has to happen elsewhere.
        threading.Thread(target=server.shutdown).start()

    before = [signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    print("stopped", flush=True)
    return 0


def server_of(options: argparse.Namespace) -> TeacherServer:
    """A server that listens already.

    Args:
        options: As :func:`main` parses them.

    Raises:
        CommandError: See :func:`main`.
    """
    from keyekit.models.weights import CheckpointError
    from keyekit.rollout.teachers.local import LocalTeacher
    from keyekit.rollout.teachers.server import ServerLimits, TeacherServer

    teacher = LocalTeacher(str(_folder(options.folder)), dtype=options.dtype)
    limits = ServerLimits(request_bytes=options.request_megabytes << 20, pack_tokens=options.pack_tokens)
    try:
        _ = teacher.reading  # what is wrong with the folder is said before anybody waits for an answer
        server = TeacherServer(teacher, _token(options), options.host, options.port, limits, options.device)
    except FileNotFoundError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    except (CheckpointError, ValueError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{options.host}:{options.port} cannot be listened on: {error.strerror}") from error
    if options.host not in _LOOPBACK:
        print(
            f"warning: {options.host} can be reached from other machines and nothing is encrypted: keep it inside a network "
            "that you trust, or behind a proxy with TLS",
            file=sys.stderr,
        )
    return server


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyekit serve",
        description="Serve a teacher: scores packs of answers and returns each token's best words "
        f"(concepts/distillation). Students send the token in ${TOKEN_VARIABLE}.",
    )
    parser.add_argument("folder", help="folder of a finished run or of a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8731, help="port; 0 for a free one (default: 8731)")
    parser.add_argument("--token-file", type=Path, help=f"file with the token, instead of ${TOKEN_VARIABLE}")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda:0 (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights; as in the folder")
    parser.add_argument("--pack-tokens", type=int, default=65_536, help="most tokens of a request (default: 65536)")
    parser.add_argument("--request-megabytes", type=int, default=256, help="largest request (default: 256)")
    parser.add_argument("--verbose", action="store_true", help="log every request")
    return parser


def _folder(word: str) -> Path:
    folder = Path(word)
    return folder / "export" if (folder / "config.yaml").is_file() else folder


def _token(options: argparse.Namespace) -> str:
    """The token of the file or the environment; a new one, which is printed, if there is none."""
    if options.token_file is not None:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CommandError(f"{options.token_file}: {error.strerror}") from error
        if not token:
            raise CommandError(f"{options.token_file} is empty: put a token into it")
        return token
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        token = secrets.token_urlsafe(24)
        print(f"no token in ${TOKEN_VARIABLE}, so this one: export {TOKEN_VARIABLE}={token}", file=sys.stderr)
    return token
