"""The embedded engine's own process; run as a script, it needs nothing of this package.

A process of its own, because the engine holds the interpreter's lock while it starts and stops, and waits for running
requests when it stops: in a caller's process that stalls the event loop, Ctrl-C and time-outs alike. Settings come as
one JSON line on stdin, the address goes out as one JSON line on stdout, and the end of stdin, which a dying parent
brings about too, ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    settings = json.loads(sys.stdin.readline())
    try:
        server = start(settings)
    except RuntimeError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
        os._exit(1)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()
    os._exit(0)  # without waiting for requests under way


def start(settings: dict[str, Any]) -> Any:
    """The running server."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["model"]}
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.api_keys = [settings["api_key"]] if settings["api_key"] else []
    params.cors_origins = ""  # no page in a browser may read what it answers
    params.ui = False
    params.verbosity = -1
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["parallel"] * settings["context"]
    params.n_batch = 256  # a client that leaves is noticed between two batches
    params.sse_ping_interval = 1
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.n_threads_http = settings["parallel"] + 2
    if settings["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(settings["adapter"], 1.0)]
    if settings["thinking"] is not None:
        params.default_template_kwargs = {"enable_thinking": json.dumps(settings["thinking"])}
    if settings["embedding"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
