"""All that talks to the server; nobody else imports hvac or requests."""
