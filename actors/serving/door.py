"""What Ray Serve's proxy lets through: HTTP requests, with the headers that mean something here.

The proxy fails at WebSockets that no application takes, and at some headers that are not UTF-8, before a replica sees
them.
"""

from __future__ import annotations

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = {b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding"}


class Door:
    """In front of everything else in the proxy's process."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # a 403, as it has not been accepted
            return
        if scope["type"] == "http":
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] in HEADERS]}
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy asks for when it starts."""
    return [Middleware(Door)]


def put_in_front() -> None:
    """Has the proxies of a Ray that this process starts use it; those of other clusters have their own."""
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{__name__}:{middlewares.__name__}")
