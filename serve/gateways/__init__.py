"""Filters for SMS gateways, one program each; see docs/gateway.md."""

from jingyin.model.errors import need

need("a filter for gateways", "gateways", "httptools", "prometheus_client")
