"""The metrics for Prometheus, at /metrics on an address of their own, and the calls' metrics for OpenTelemetry.

    catalogue    the metrics: names, kinds, labels and what they mean
    collector    reads them from the running server, once for each scrape
    http         answers scrapes
    tls          TLS of these answers
    telemetry    gRPC's plugin for OpenTelemetry; imported with the setting `opentelemetry` only

May import `server.transport` and what stands below it, and prometheus_client, which the extra `metrics` installs. The
server imports this folder only if it has the setting `metrics_listen`.
"""
