"""The page at /: classify photos, and watch the state of the tail."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response

from taillift.service.page.stored_files import StoredFile, StoredFolder

FOLDER: Final = Path(str(files("taillift.service.page") / "files"))

pages = APIRouter(include_in_schema=False)


@pages.get("/")
async def page(request: Request) -> Response:
    index: StoredFile = request.app.state.index
    return index.response(request.headers)


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its files below /page; neither needs an API key."""
    app.state.index = StoredFile(FOLDER / "index.html")
    app.include_router(pages)
    app.mount("/page", StoredFolder(FOLDER))
