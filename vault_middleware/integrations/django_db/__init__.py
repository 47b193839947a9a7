"""Django's PostgreSQL backend, whose connections follow the rotation of their credential; see :mod:`.base`."""
