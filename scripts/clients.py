"""Behind `scripts/test-clients`: KServe's SDK and MLServer's types, each in its environment."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.palette import CLASSES, photo, write_bundle
from tests.support.serving import process

KSERVE = """
import asyncio, sys
from kserve import InferenceRESTClient, RESTConfig, InferRequest, InferInput
url, photo = sys.argv[1], open(sys.argv[2], "rb").read()

async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "palette")
    for binary in (True, False):
        image = InferInput("image", [1], "BYTES")
        if binary:
            import numpy as np
            image.set_data_from_numpy(np.array([photo], np.object_), binary_data=True)
        else:
            import base64
            image.data = [base64.b64encode(photo).decode()]
        request = InferRequest(model_name="palette", infer_inputs=[image])
        answer = await client.infer(url, request, model_name="palette")
        labels = {output.name: output for output in answer.outputs}["label"].as_numpy()
        assert str(labels.ravel()[0]) in ("red", "b'red'"), labels
    try:
        bad = InferInput("image", [1], "BYTES", data=["aaaa"])
        request = InferRequest(model_name="palette", infer_inputs=[bad])
        await client.infer(url, request, model_name="palette")
    except Exception as error:
        assert "not a JPEG" in str(error), error
    else:
        raise AssertionError("a bad photo was not refused")

asyncio.run(main())
"""
MLSERVER = """
import json, sys, urllib.request
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import (
    InferenceRequest, InferenceResponse, MetadataModelResponse, RepositoryIndexResponse,
)
url, photo = sys.argv[1], open(sys.argv[2], "rb").read()
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def ask(path, body=None):
    headers = {"Content-Type": "application/json"}
    with direct.open(urllib.request.Request(url + path, body, headers)) as answer:
        return json.load(answer)

image = Base64Codec.encode_input("image", [photo])
body = InferenceRequest(inputs=[image]).model_dump_json().encode()
answer = InferenceResponse.model_validate(ask("/v2/models/palette/infer", body))
(label, *_) = StringCodec.decode_output(answer.outputs[0])
assert label == "red", answer
assert MetadataModelResponse.model_validate(ask("/v2/models/palette")).inputs[0].name == "image"
assert RepositoryIndexResponse.model_validate(ask("/v2/repository/index", b"{}"))
"""


def main() -> None:
    environments = Path(sys.argv[1])
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "red.png").write_bytes(photo(CLASSES["red"][0]))
        with process(write_bundle(folder / "palette")) as (_, service):
            url = str(service.base_url).rstrip("/")
            for client, source in (("kserve", KSERVE), ("mlserver", MLSERVER)):
                python = environments / client / "bin" / "python"
                result = subprocess.run(
                    [python, "-c", source, url, folder / "red.png"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                failed |= result.returncode != 0
                print(f"{client}: {'failed' if result.returncode else 'passed'}")
                print(result.stderr[-2_000:] if result.returncode else "", end="")
    sys.exit(failed)


if __name__ == "__main__":
    main()
