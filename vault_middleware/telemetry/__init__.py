"""Telemetry: what is counted, audited and logged. Listens to events; decides nothing."""
