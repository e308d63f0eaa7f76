"""Behind `scripts/test-nginx`: no request is lost between nginx and the service."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.support.palette import CLASSES, photo, write_bundle
from tests.support.serving import process, sample
from tests.support.stack import NGINX, free_port, nginx

SERVERS = """
  upstream taillift {{
    server 127.0.0.1:{service};
    keepalive 64;
    keepalive_timeout 70s;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://taillift;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_next_upstream off;
    }}
  }}
"""
# Idle times in seconds: before, at and after the 5 of earlier versions, the 70 of nginx and the 75
# of the service.
PAUSES = (4.8, 4.9, 4.95, 4.99, 5.1, 60, 69.9, 70.1, 74.9, 75.1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests through nginx to a service.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=20)
    options = parser.parse_args()
    if NGINX is None:
        print("test-nginx: skipped: nginx is not installed (apt-get install nginx)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with process(write_bundle(folder / "palette")) as (_, service):
            port = free_port()
            servers = SERVERS.format(service=service.base_url.port, port=port)
            with nginx(folder, servers, port):
                statuses = storm(f"http://127.0.0.1:{port}", options.requests, options.clients)
                opened = sample(service, "taillift_stage_seconds_count", stage="read")
        closed = (folder / "error.log").read_text(errors="replace").count("prematurely closed")
    lost = sum(statuses.values()) - statuses[200]
    print(f"{statuses.total():,} requests: {dict(statuses)}; lost: {lost}")
    print(f"bodies that the service read: {opened:,.0f}; connections closed too early: {closed}")
    sys.exit(lost != 0 or closed != 0)


def storm(url: str, requests: int, clients: int) -> Counter[int]:
    """Return the statuses of so many requests, one in four with a photo, in bursts with pauses."""
    red, bursts = photo(CLASSES["red"][0]), len(PAUSES) + 1
    statuses: Counter[int] = Counter()

    def ask(number: int) -> int:
        if number % 4:
            return client.get(("/model", "/classes", "/healthz")[number % 3]).status_code
        return client.post("/classify?ensemble=off", content=red).status_code

    with (
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        for burst in range(bursts):
            first, last = (requests * edge // bursts for edge in (burst, burst + 1))
            start = time.monotonic()
            statuses.update(pool.map(ask, range(first, last)))
            seconds = time.monotonic() - start
            pause = f", then {PAUSES[burst]} s idle" if burst < len(PAUSES) else ""
            print(f"{last - first} requests in {seconds:.1f} s{pause}", flush=True)
            if burst < len(PAUSES):
                time.sleep(PAUSES[burst])
    return statuses


if __name__ == "__main__":
    main()
