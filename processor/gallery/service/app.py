"""The gallery over HTTP: FastAPI routes over `Answers`, in threads, with the page at /."""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from processor.gallery.contract import Gallery, check_vectors
from processor.gallery.service import messages
from processor.gallery.service.answers import Answers, Vision, make_thumbnail
from processor.gallery.service.batching import Batcher
from processor.gallery.service.guard import Guard, Limits, Meters

_HERE = Path(__file__).parent
_SEARCHERS = 2  # threads that search
# Error -> status; what is not here is a fault of ours, and `Guard` answers 500.
_STATUS = {ValueError: 400, KeyError: 404, OSError: 503, RequestValidationError: 422, ValidationError: 422}
Read = TypeVar("Read", bound=messages.Asked)


class Service(NamedTuple):
    """What the routes share."""

    answers: Answers
    vision: Vision | None
    limits: Limits
    meters: Meters
    batcher: Batcher
    searchers: ThreadPoolExecutor
    writer: ThreadPoolExecutor  # of one thread: writes wait for each other here, not for the engine's lock
    embedder: ThreadPoolExecutor  # of one thread


class Picked(NamedTuple):
    """The rows [N, D] that a request is about, and their pictures, where it brought any."""

    vectors: np.ndarray
    pictures: list[np.ndarray] | None
    name: str


def make_app(gallery: Gallery, vision: Vision | None = None, *, token: str | None = None,
             limits: Limits | None = None) -> FastAPI:
    """The service of an open gallery, which stays the caller's to close.

    Args:
        vision: what it knows of pictures; None: it takes vectors only.
        token: that every request must bear; None: only requests of this machine are answered.
    """
    limits, meters = limits or Limits(), Meters()
    answers = Answers(gallery, vision)
    searchers = ThreadPoolExecutor(_SEARCHERS, "search")

    def search(queries: np.ndarray, k: int, key: tuple) -> list[list]:
        meters.searches += 1
        meters.searched += len(queries)
        return answers.search(queries, k, *key)

    service = Service(answers, vision, limits, meters, Batcher(search, searchers), searchers,
                      ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(1, "embed"))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.stop()
        for pool in (service.searchers, service.writer, service.embedder):
            pool.shutdown()

    # Its own pages of documentation would load scripts of other sites; /openapi.json is there.
    app = FastAPI(title="Gallery of people", docs_url=None, redoc_url=None, redirect_slashes=False,
                  lifespan=lifespan)
    app.openapi = lambda: app.openapi_schema or _describe(app)
    app.add_middleware(Guard, token=token, limits=limits, meters=meters)
    for kind, status in {**_STATUS, HTTPException: 0}.items():
        app.add_exception_handler(kind, _answer_error(status))
    for add in (_add_pages, _add_questions, _add_people, _add_changes):
        add(app, service)
    return app


def _answer_error(status: int) -> Callable:
    async def answer(_: Request, error: Exception) -> Response:
        code, reason = status, str(error.args[0]) if error.args else type(error).__name__
        if isinstance(error, HTTPException):
            code, reason = error.status_code, str(error.detail)
        elif isinstance(error, (RequestValidationError, ValidationError)):
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))  # of what is no JSON at all there is none
            reason = f"{place}: {first['msg']}" if place else first["msg"]
        elif isinstance(error, OSError):
            reason = str(error)
        return JSONResponse({"error": reason}, code, headers={"Retry-After": "1"} if code == 503 else None)
    return answer


# ------------------------------------------------------------------ pages and machines
def _add_pages(app: FastAPI, service: Service) -> None:
    for path, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js")):
        app.add_api_route(path, lambda name=name: FileResponse(_HERE / name, headers={"Cache-Control": "no-cache"}),
                          include_in_schema=False)

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether the gallery answers; 503 if not")
    async def readyz() -> dict[str, str]:
        await _in(service.searchers, service.answers.count)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus' text")
    async def metrics() -> Response:
        rows = await _in(service.searchers, service.answers.count)
        return PlainTextResponse(service.meters.format(rows), media_type="text/plain; version=0.0.4")

    @app.get("/v1/info", summary="What the gallery holds, and what a request may bring")
    async def info() -> dict[str, Any]:
        return {**await _in(service.searchers, service.answers.info), "limits": service.limits._asdict()}


# ------------------------------------------------------------------ pictures and vectors
def _takes(kind: type[messages.Asked]) -> dict[str, Any]:
    """For OpenAPI: JSON with vectors, or a form with a picture and the same JSON without them."""
    form = {"type": "object", "required": ["picture"], "properties": {
        "picture": {"type": "string", "format": "binary", "description": "a crop, or a frame with boxes"},
        "request": {"type": "string", "contentMediaType": "application/json", "description": "as the JSON body"}}}
    return {"requestBody": {"required": True, "content": {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}},
        "multipart/form-data": {"schema": form}}}}


def _describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI's description, with what `_takes` refers to."""
    schema = app.openapi_schema = get_openapi(title=app.title, version="1", routes=app.routes)
    for kind in (messages.Question, messages.Identification, messages.Addition):
        described = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= described.pop("$defs", {}) | {kind.__name__: described}
    return schema


def _reader(kind: type[Read], service: Service) -> Any:
    """A dependency: (what is asked, the rows that it is about)."""
    async def read(request: Request) -> tuple[Read, Picked]:
        content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content == "application/json":
            asked, data, name = kind.model_validate_json(await request.body()), None, ""
        elif content == "multipart/form-data":
            try:
                form = await request.form(max_files=1, max_fields=4, max_part_size=service.limits.body)
            except (HTTPException, OSError):
                raise
            except Exception as error:  # the parser's own kinds differ by version
                raise ValueError(f"the form cannot be read: {error}") from error
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(form.close)
                picture, text = form.get("picture"), form.get("request", "{}")
                if not hasattr(picture, "read") or not isinstance(text, str) or set(form) - {"picture", "request"}:
                    raise ValueError("expected a form with a file `picture` and, if need be, a text `request`")
                asked, data, name = kind.model_validate_json(text), await picture.read(), picture.filename or ""
        else:
            raise HTTPException(415, "expected application/json, or multipart/form-data with a picture")
        return asked, await _pick(service, asked, data, name)

    return Depends(read)


async def _pick(service: Service, asked: messages.Asked, data: bytes | None, name: str) -> Picked:
    answers, limits = service.answers, service.limits
    if (asked.vectors is None) == (data is None):
        raise ValueError("expected either vectors or a picture")
    if len(asked.vectors or asked.boxes or ()) > limits.boxes:
        raise HTTPException(413, f"more than {limits.boxes} boxes or vectors in one request")
    if asked.vectors is not None:
        if len({*map(len, asked.vectors), answers.gallery.dim}) > 1:
            raise ValueError(f"vectors: expected {answers.gallery.dim} numbers in each")
        return Picked(check_vectors(np.array(asked.vectors), answers.gallery.dim), None, "")
    if service.vision is None:
        raise HTTPException(501, "this service was started without a model: send vectors")

    def embed() -> Picked:
        picture = service.vision.decode(data)
        crops = [picture] if asked.boxes is None else service.vision.crop(picture, asked.boxes)
        if not crops:
            raise ValueError("boxes: there is none")
        return Picked(check_vectors(service.vision.embed(crops), answers.gallery.dim), crops, name)
    return await _in(service.embedder, embed)


def _add_questions(app: FastAPI, service: Service) -> None:
    answers = service.answers

    @app.post("/v1/search", openapi_extra=_takes(messages.Question), summary="The nearest rows for each box or vector")
    async def search(read: tuple = _reader(messages.Question, service)) -> dict[str, Any]:
        asked, picked = read
        if asked.k > service.limits.k:
            raise HTTPException(413, f"k is more than {service.limits.k}")
        # A shortlist that is re-ranked depends on its length: only equal ones share a search.
        key = (asked.where.where(), asked.re_rank and asked.k)
        return {"queries": await service.batcher.ask(picked.vectors, asked.k, key)}

    @app.post("/v1/identify", openapi_extra=_takes(messages.Identification), summary="Who it is, or nobody known")
    async def identify(read: tuple = _reader(messages.Identification, service)) -> dict[str, Any]:
        asked, picked = read
        return {"queries": await _in(service.searchers, answers.identify, picked.vectors, asked.where.where(),
                                     asked.threshold)}

    @app.post("/v1/add", openapi_extra=_takes(messages.Addition), status_code=201, summary="Add rows; durable at once")
    async def add(read: tuple = _reader(messages.Addition, service)) -> dict[str, Any]:
        asked, picked = read
        columns = asked.columns(len(picked.vectors))
        thumbnails = [make_thumbnail(picture) for picture in picked.pictures or ()]
        if picked.name:
            columns["name"] = [name or messages.clean_label(picked.name) for name in columns["name"]]
        return {"ids": await _in(service.writer, answers.add, asked.ids, picked.vectors, columns, thumbnails)}


# ------------------------------------------------------------------ people
def _add_people(app: FastAPI, service: Service) -> None:
    answers = service.answers

    @app.get("/v1/people", summary="Those with most recent rows first")
    async def people(limit: Annotated[int, Query(ge=1, le=1000)] = 60,
                     offset: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> dict[str, Any]:
        return await _in(service.searchers, answers.list_people, limit, offset)

    @app.get("/v1/people/{identity}", summary="A person's rows by time; -1: of nobody yet")
    async def person(identity: messages.Whole, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> dict[str, Any]:
        return await _in(service.searchers, answers.describe_person, identity, limit)

    @app.get("/v1/thumbnails/{row}", response_class=Response, summary="JPEG")
    async def thumbnail(row: messages.Id) -> Response:
        data = await _in(service.searchers, answers.thumbnail, row)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_changes(app: FastAPI, service: Service) -> None:
    answers = service.answers

    async def write(call: Callable, *arguments: Any) -> dict[str, Any]:
        return await _in(service.writer, call, *arguments)

    @app.post("/v1/assign", summary="Say whose rows these are")
    async def assign(asked: messages.Assignment) -> dict[str, Any]:
        return await write(answers.assign, asked.ids, asked.identity, asked.person)

    @app.post("/v1/name", summary="Name a person")
    async def name(asked: messages.Naming) -> dict[str, Any]:
        return await write(answers.name, asked.identity, asked.name)

    @app.post("/v1/merge", summary="Say that two identities are one person")
    async def merge(asked: messages.Merging) -> dict[str, Any]:
        return await write(answers.merge, asked.into, asked.other)

    @app.post("/v1/split", summary="Say that rows are of another, new person")
    async def split(asked: messages.Rows) -> dict[str, Any]:
        return await write(answers.split, asked.ids)

    @app.post("/v1/remove", summary="Remove rows")
    async def remove(asked: messages.Removal) -> dict[str, Any]:
        return await write(answers.remove, asked.ids, asked.erase)

    @app.post("/v1/undo", summary="Take the last change back")
    async def undo() -> dict[str, Any]:
        return await write(answers.undo)


async def _in(pool: ThreadPoolExecutor, call: Callable, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
