"""The calls' metrics for OpenTelemetry: gRPC's own plugin measures, and the SDK sends by OTLP over HTTP.

The SDK's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME, ...) say where and
how often. The plugin acts on all servers of a process. Imports the packages of the extra `opentelemetry`.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from grpc_observability import OpenTelemetryPlugin
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

import numba_adam
from numba_adam.errors import ConfigurationError

_NAME_VARIABLE = "OTEL_SERVICE_NAME"


class Telemetry:
    """Measures the calls of the servers that are made from now on.

    Args:
        methods: the names of the server's methods, as "/SERVICE/METHOD"; all others are counted as "other".

    Raises:
        ConfigurationError: the process has such a plugin already.
    """

    def __init__(self, methods: Collection[str]) -> None:
        known = frozenset(method.removeprefix("/") for method in methods)
        # Over HTTP, because the plugin would measure an exporter's own calls in gRPC, too.
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._provider = MeterProvider([reader], resource=Resource.create(_attributes()))
        self._plugin = OpenTelemetryPlugin(
            meter_provider=self._provider,
            generic_method_attribute_filter=lambda method: method.removeprefix("/") in known,
        )
        try:
            self._plugin.register_global()
        except RuntimeError as error:
            self._provider.shutdown()
            raise ConfigurationError(
                "opentelemetry='on': this process has a plugin of gRPC for OpenTelemetry already, which measures this "
                "server too; leave the setting 'off'"
            ) from error

    def stop(self) -> None:
        """Send what is left, and measure no more."""
        self._plugin.deregister_global()
        self._provider.shutdown()


def _attributes() -> dict[str, str]:
    """Return what describes the server, but for a name that a variable gives it."""
    name = {} if os.environ.get(_NAME_VARIABLE) else {SERVICE_NAME: "numba-adam"}
    return {**name, SERVICE_VERSION: numba_adam.__version__}
