"""The page at /: classify photos, and watch the state of the tail."""

import os
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = str(files("taillift.service.page") / "files")
# Browsers ask again each time and get a 304, so that an update never leaves an old part behind.
FRESH: Final = {"Cache-Control": "no-cache"}

pages = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The page's scripts and styles, revalidated at every visit."""

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


@pages.get("/")
async def page() -> FileResponse:
    return FileResponse(f"{FOLDER}/index.html", headers=FRESH)


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its files below /page; neither needs an API key."""
    app.include_router(pages)
    app.mount("/page", PageFiles(directory=FOLDER))
