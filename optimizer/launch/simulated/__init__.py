"""A stand-in for a serving engine where there is no GPU: it answers as fast as was predicted.

    python3 -m optimizer.launch.simulated --port 8000 --ttft-ms 300 --tpot-ms 20

OpenAI's API on the loopback interface: ``/v1/models``, ``/v1/chat/completions`` and
``/v1/completions`` (streaming too), ``/v1/embeddings``, ``/predict`` for what is no LLM,
``/health`` and ``/metrics``. The first token comes one TTFT after a request is admitted, each
further one a TPOT later; admission is limited as by the engine's batch and KV cache. The words it
says mean nothing.
"""
