"""A reference orchestrator: what `python -m trn.worker` speaks to, in one process, for one machine.

    python examples/orchestrator/app.py --folder state --public-key keys/public.pem --port 8090

    POST /runs                          submit a job             GET /runs, GET /runs/{run_id}   how they stand
    POST /next                          the next job             POST /runs/{run_id}/cancel
    POST /runs/{run_id}/lease           claim; PUT, DELETE .../lease/{lease_id} renew, let go
    POST /runs/{run_id}/metrics         step lines
    POST /runs/{run_id}/checkpoints     and .../samples: tus; PATCH, HEAD /runs/{run_id}/uploads/{upload_id}
    POST /runs/{run_id}/terminal        how a job ended

The first four are the platform's (scope trn.operate), the others a worker's (scope trn.run); all need a token. The
protocol: docs/orchestrator.md. Not here: TLS, several machines, users, anything a platform would be paid for.
"""

import argparse
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from artifacts import Upload, Uploads
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from runs import Lease, Refusal, Run, Runs
from starlette.requests import ClientDisconnect
from tokens import Bearers

__all__ = ["create_app"]

Json = dict[str, Any]
Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x20-\x7e]+$")]

_MOST_JSON_BYTES = 8 << 20
_TUS = "1.0.0"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Claim(Body):
    worker_id: Word
    job_id: Word
    host: Word = "unknown"


class Renewal(Body):
    step: int | None = None
    state: Word = "running"


class Lines(Body):
    run_id: str
    job_id: Word
    lines: Annotated[list[Json], Field(max_length=10_000)]
    cut_above_step: Annotated[int, Field(ge=0)] | None = None


class FinalCheckpoint(Body):
    name: Word
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]
    ref: str | None = None


class Terminal(Body):
    run_id: str
    job_id: Word
    status: Word
    exit_code: Annotated[int, Field(ge=0, le=255)]
    step: int | None = None
    reason: str | None = None
    final_checkpoint: FinalCheckpoint | None = None
    outcome: Json | None = None


class Reason(Body):
    reason: Word = "the platform asked for it"


def create_app(folder: Path, public_key: Path, *, ttl_s: float = 30.0, most_bytes: int = 64 << 30) -> FastAPI:
    """The app over what lies in `folder`; tokens are checked with the key in the file `public_key`."""
    runs, bearers = Runs(folder / "runs", ttl_s=ttl_s), Bearers(public_key)
    uploads = Uploads(folder / "uploads", most_bytes=most_bytes)
    app = FastAPI(title="trn reference orchestrator", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_limit_bodies)
    app.exception_handler(Refusal)(_refused)
    app.get("/health")(_health)

    # async, so that nothing comes between the fence and what it lets through: else threads would ask, and wait

    async def owner(request: Request) -> str:
        """Of a token that lets the platform ask."""
        bearer = bearers.of(request.headers.get("authorization"))
        if "trn.operate" not in bearer.scopes:
            raise Refusal(403, "the token's scope is not trn.operate")
        return bearer.owner

    async def run_of(request: Request, run_id: str) -> Run:
        """The run that the token lets a worker speak for."""
        bearer = bearers.of(request.headers.get("authorization"))
        if "trn.run" not in bearer.scopes or bearer.run_id not in (None, run_id):
            raise Refusal(403, "the token is not for this run")
        run = runs.get(run_id, bearer.owner)
        if bearer.release is None or bearer.release != run.job.get("release_ref"):
            raise Refusal(403, "the token is not for this run's release")
        return run

    async def fenced(request: Request, run: Annotated[Run, Depends(run_of)]) -> Run:
        """The same, where no newer lease has it."""
        runs.fence(run, request.headers.get("lease-id"), request.headers.get("lease-generation"))
        return run

    app.include_router(_platform(runs, uploads, owner))
    app.include_router(_leases(runs, run_of, fenced))
    app.include_router(_reports(runs, fenced))
    app.include_router(_tus(uploads, fenced))
    return app


def _platform(runs: Runs, uploads: Uploads, owner: Callable[..., Awaitable[str]]) -> APIRouter:
    router = APIRouter()
    Owner = Annotated[str, Depends(owner)]

    @router.post("/runs", status_code=201)
    async def submit(job: Json, owner: Owner) -> Json:
        return _head(runs.submit(job, owner))

    @router.get("/runs")
    async def listed(owner: Owner) -> list[Json]:
        return [_head(run) for run in runs.all.values() if run.owner == owner]

    @router.get("/runs/{run_id}")
    async def page(run_id: str, owner: Owner) -> Json:
        return _page(runs.get(run_id, owner), uploads.of(run_id))

    @router.post("/next")
    async def next_job(owner: Owner) -> Response:
        run = runs.next(owner)
        return Response(status_code=204) if run is None else JSONResponse(run.job)

    @router.post("/runs/{run_id}/cancel", status_code=202)
    async def cancel(run_id: str, body: Reason, owner: Owner) -> Json:
        run = runs.get(run_id, owner)
        runs.cancel(run, body.reason)
        return _head(run)

    return router


def _leases(runs: Runs, run_of: Callable[..., Awaitable[Run]], fenced: Callable[..., Awaitable[Run]]) -> APIRouter:
    router = APIRouter(prefix="/runs/{run_id}/lease")

    def answer(run: Run, lease: Lease) -> Json:
        wish = {"reason": run.cancel_reason} if run.cancel_reason else {}
        return {"ttl_seconds": runs.ttl_s, "cancel": run.cancel_reason is not None, **wish}

    @router.post("", status_code=201)
    async def claim(body: Claim, run: Annotated[Run, Depends(run_of)]) -> Json:
        lease = runs.claim(run, body.worker_id, body.job_id, body.host)
        return {"lease_id": lease.lease_id, "generation": lease.generation, **answer(run, lease)}

    @router.put("/{lease_id}")
    async def renew(lease_id: str, body: Renewal, run: Annotated[Run, Depends(fenced)]) -> Json:
        return answer(run, runs.renew(run, lease_id, body.step, body.state))

    @router.delete("/{lease_id}", status_code=204)
    async def release(lease_id: str, run: Annotated[Run, Depends(fenced)]) -> None:
        runs.release(run, lease_id)

    return router


def _reports(runs: Runs, fenced: Callable[..., Awaitable[Run]]) -> APIRouter:
    router = APIRouter(prefix="/runs/{run_id}")
    Fenced = Annotated[Run, Depends(fenced)]

    @router.post("/metrics", status_code=202)
    async def metrics(body: Lines, request: Request, run: Fenced) -> Json:
        _require_same(body.run_id, run)
        runs.add_lines(run, request.headers.get("idempotency-key"), body.lines, body.cut_above_step)
        return {"lines": len(run.lines)}

    @router.post("/terminal")
    async def terminal(body: Terminal, request: Request, run: Fenced) -> Json:
        _require_same(body.run_id, run)
        if request.headers.get("idempotency-key") not in (None, body.job_id):
            raise Refusal(422, "Idempotency-Key: expected the job_id")
        told = runs.end(run, body.model_dump())
        return {"run_id": run.run_id, "job_id": told["job_id"], "status": told["status"]}

    return router


def _tus(uploads: Uploads, fenced: Callable[..., Awaitable[Run]]) -> APIRouter:
    async def version(request: Request) -> None:
        if request.headers.get("tus-resumable") != _TUS:
            raise Refusal(412, f"Tus-Resumable: expected {_TUS}", Tus_Version=_TUS)

    router = APIRouter(prefix="/runs/{run_id}", dependencies=[Depends(version)])
    Fenced = Annotated[Run, Depends(fenced)]

    @router.post("/{place}")
    async def create(place: Literal["checkpoints", "samples"], request: Request, run: Fenced) -> Response:
        given = request.headers
        upload, is_new = uploads.create(
            run.run_id, place, given.get("upload-length", ""), given.get("upload-metadata", ""),
            given.get("idempotency-key"),
        )  # fmt: skip
        digest = await uploads.finish(upload)
        place_of_it = request.url_for("send", run_id=run.run_id, upload_id=upload.upload_id)
        headers = _standing(upload, uploads.offset(upload), digest) | {"Location": str(place_of_it)}
        return Response(status_code=201 if is_new else 200, headers=headers)

    @router.head("/uploads/{upload_id}")
    async def look(upload_id: str, run: Fenced) -> Response:
        upload = uploads.get(run.run_id, upload_id)
        digest = await uploads.finish(upload)
        return Response(headers=_standing(upload, uploads.offset(upload), digest) | {"Cache-Control": "no-store"})

    @router.patch("/uploads/{upload_id}", status_code=204)
    async def send(upload_id: str, request: Request, run: Fenced) -> Response:
        upload = uploads.get(run.run_id, upload_id)
        if request.headers.get("content-type") != "application/offset+octet-stream":
            raise Refusal(415, "Content-Type: expected application/offset+octet-stream")
        offset = request.headers.get("upload-offset", "")
        if not (offset.isascii() and offset.isdecimal()):
            raise Refusal(400, "Upload-Offset: expected a number of bytes")
        at = await uploads.receive(upload, int(offset[:20]), _chunks(request))
        return Response(status_code=204, headers=_standing(upload, at, await uploads.finish(upload)))

    return router


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Refusal(400, "the connection ended before the bytes did") from None  # to nobody


def _standing(upload: Upload, offset: int, digest: str | None) -> dict[str, str]:
    headers = {"Tus-Resumable": _TUS, "Upload-Offset": str(offset), "Upload-Length": str(upload.size_bytes)}
    if digest is not None:
        told = base64.b64encode(bytes.fromhex(digest)).decode()
        headers |= {"Repr-Digest": f"sha-256=:{told}:", "Upload-Ref": upload.ref}
    return headers


def _require_same(run_id: str, run: Run) -> None:
    if run_id != run.run_id:
        raise Refusal(422, f"run_id: expected {run.run_id!r}, as in the path")


def _head(run: Run) -> Json:
    step = max(run.lines, default=0)
    return {"run_id": run.run_id, "state": run.state, "step": step, "generation": run.generation}


def _page(run: Run, artifacts: list[Upload]) -> Json:
    """All that is known of a run."""
    lease = run.lease
    held = None if lease is None else {key: value for key, value in vars(lease).items() if key not in _UNTOLD}
    return {
        **_head(run),
        "lines": [run.lines[step] for step in sorted(run.lines)],
        "artifacts": [upload.page() for upload in artifacts],
        "lease": held,
        "is_held": run.is_held,
        "cancel": run.cancel_reason,
        "terminals": run.terminals,
        "job": run.job,
    }


_UNTOLD = ("lease_id", "until_s")


async def _health() -> Json:
    return {"ok": True}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": str(error)}, error.status, headers=error.headers)


async def _limit_bodies(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Bodies of known and modest length, but for PATCH, which goes to the disk piece by piece."""
    length = request.headers.get("content-length", "0")
    is_open = "transfer-encoding" in request.headers or not length.isdecimal()
    if request.method != "PATCH" and (is_open or int(length[:20]) > _MOST_JSON_BYTES):
        return JSONResponse({"error": f"expected a body of at most {_MOST_JSON_BYTES} bytes"}, 411 if is_open else 413)
    return await call_next(request)


def main() -> None:
    parser = argparse.ArgumentParser(description="A reference orchestrator on 127.0.0.1.")
    parser.add_argument("--folder", type=Path, required=True, help="where runs and uploads are kept")
    parser.add_argument("--public-key", type=Path, required=True, help="PEM, of the key that signs tokens")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--ttl", type=float, default=30.0, help="seconds after which a lease that is not renewed is over"
    )
    given = parser.parse_args()
    app = create_app(given.folder, given.public_key, ttl_s=given.ttl)
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
