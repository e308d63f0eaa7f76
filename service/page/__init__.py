"""The page at /: classify photos, and watch the state of the tail; also as a file by itself."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from mimetypes import guess_type
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

FOLDER: Final = Path(str(files("taillift.service.page") / "files"))

# Browsers ask again each time and get a 304, so that an update never leaves an old part behind.
FRESH: Final = {"Cache-Control": "no-cache"}

pages = APIRouter(include_in_schema=False)


class StoredFile:
    """One file, read once and served from memory: clients may hold all that can be opened."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._type = guess_type(path.name)[0] or "application/octet-stream"
        self._tag = f'"{sha256(self._content).hexdigest()[:32]}"'

    def response(self, headers: Headers) -> Response:
        """Return the answer to a request with these headers: 304 if the client has the content."""
        known = [
            tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")
        ]
        fresh = {**FRESH, "ETag": self._tag}
        if self._tag in known or "*" in known:
            return Response(status_code=304, headers=fresh)
        return Response(self._content, media_type=self._type, headers=fresh)


class StoredFolder:
    """ASGI application of the files directly in one folder; raises `HTTPException` for others."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: StoredFile(path) for path in folder.iterdir() if path.is_file()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        name = scope["path"].removeprefix(scope["root_path"]).removeprefix("/")
        if name not in self._files:
            raise HTTPException(404)
        await self._files[name].response(Headers(scope=scope))(scope, receive, send)


@pages.get("/")
async def page(request: Request) -> Response:
    index: StoredFile = request.app.state.index
    return index.response(request.headers)


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its files below /page; neither needs an API key."""
    app.state.index = StoredFile(FOLDER / "index.html")
    app.include_router(pages)
    app.mount("/page", StoredFolder(FOLDER))


def page_of_report(title: str, report: Mapping[str, object]) -> str:
    """Return a page with the state of the tail that a `report` of GET /classes has.

    It is the Tail of the page at /, holds all that it needs, and can be opened from a disk. The
    text of `summary` in the report stands above it.
    """
    index = (FOLDER / "index.html").read_text("utf-8")
    _, _, tail = index.partition('id="tail" aria-labelledby="tail-tab" hidden>')
    body = f"<section>{tail.partition('</main>')[0]}"
    return standalone(title, body, report, 'import { showOnce as start } from "tail.js";')


def page_to_label(title: str, content: Mapping[str, object]) -> str:
    """Return a page in which the photos of `sheet_content` get their labels.

    It is for the folder of these photos, and downloads a file of their labels.
    """
    start = 'import { startSheet as start } from "sheet.js";'
    return standalone(title, (FOLDER / "sheet.html").read_text("utf-8"), content, start)


def standalone(title: str, body: str, content: Mapping[str, object], start: str) -> str:
    """Return a page that holds all scripts and styles, and calls `start` with its content."""
    style = (FOLDER / "page.css").read_text("utf-8")
    # Modules from addresses that hold them cannot import each other by relative paths.
    modules = {
        path.name: re.sub(r'from "\./', 'from "', path.read_text("utf-8"))
        for path in FOLDER.glob("*.js")
    }
    imports = {
        name: f"data:text/javascript;base64,{b64encode(text.encode()).decode()}"
        for name, text in modules.items()
    }
    # No label can end the script that holds it.
    data = json.dumps(content).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
<script type="importmap">{json.dumps({"imports": imports})}</script>
<script type="application/json" id="content">{data}</script>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<main id="main">
<noscript><p class="problem">This page needs JavaScript.</p></noscript>
{body}</main>
<script type="module">
{start}
start(JSON.parse(document.getElementById("content").textContent));
</script>
</body>
</html>
"""
