"""Hooks for SMS gateways, a page (*.md) and a program each; they need only the base package, or nothing at all."""
