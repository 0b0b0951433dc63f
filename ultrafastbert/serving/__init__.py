"""The HTTP server, `ultrafastbert serve`: the interfaces of OpenAI and of text-embeddings-inference on a CPU.

A request passes through these modules in turn: `app` (routes), `schemas` (what a request may contain), `service`
(limits, tokens), `batching` (the queue), `engine` (the model). `server` starts and stops them.
"""
