"""The bus: NATS between agents and gateways. Subjects and messages here; what each side does in its own modules."""
