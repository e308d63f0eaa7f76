"""LitServe: decoding and graph in one worker, batches within a wait."""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from starlette.requests import Request

from benchmarks.peers.model import BATCH_IMAGES, TIMEOUT_SECONDS, WAIT_SECONDS, Decoder, Model
from taillift.models.bundle.arrays import Pixels


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.decoder, self.model = Decoder(), Model()

    # LitServe finds the parameter by its name, and the form by its type.
    def decode_request(self, request: Request) -> Pixels:
        form: Any = request
        return self.decoder.views(form["image"].file.read())

    def batch(self, inputs: Sequence[Pixels]) -> Sequence[Pixels]:
        return inputs

    def predict(self, x: Sequence[Pixels]) -> list[str]:
        return self.model.labels(x)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"label": output}


if __name__ == "__main__":
    litserve.LitServer(
        Api(max_batch_size=BATCH_IMAGES, batch_timeout=WAIT_SECONDS),
        accelerator="cpu",
        timeout=TIMEOUT_SECONDS,
    ).run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
