"""The page at /: photos in, classes out, and beside it the state of the tail."""

import os
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = str(files("taillift.service.page") / "files")
# Asked for again each time, answered with 304: after an update no part of the page is an old one.
FRESH: Final = {"Cache-Control": "no-cache"}

_pages = APIRouter(include_in_schema=False)


class Files(StaticFiles):
    """The page's scripts and styles."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(FRESH)
        return response


@_pages.get("/")
async def page() -> FileResponse:
    return FileResponse(f"{FOLDER}/index.html", headers=FRESH)


def add_page(app: FastAPI) -> None:
    """Show the page at /, and what it loads below /page; neither needs an API key."""
    app.include_router(_pages)
    app.mount("/page", Files(directory=FOLDER))
