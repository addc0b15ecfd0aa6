"""Filters for SMS gateways, one program each; see docs/gateway.md."""
