"""Files that are served from memory: clients may hold all that the process can open."""

from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# Browsers ask again each time and get a 304, so that an update never leaves an old part behind.
FRESH: Final = {"Cache-Control": "no-cache"}


class StoredFile:
    """One file, read once."""

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
